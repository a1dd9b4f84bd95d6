"""Frames: many rows of one schema, with a manifest that says where every run of rows came from.

On the wire a frame is::

    magic      4 bytes   b"NTF1"
    crc32      uint32    of everything behind it
    schema     uint16    length of the schema id
    columns    uint16    how many columns the writer knew
    runs       uint32    runs in the manifest
    batch      uint32    where the Arrow message begins, counted from the start of the frame
    id, runs   ...       the schema id, then each run: uint16 source length, source, 16 bytes boot, uint64 seq,
                         uint32 rows, float64 sent
    message    ...       one Arrow IPC record batch message, bare and uncompressed

All integers are little endian. A whole Arrow stream would carry its schema in every frame, which weighs six times the
values of a small one; here the id stands for it. Nothing is believed before it is checked: see :func:`decode`.
"""

import struct
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.schemas import SCHEMAS

MAGIC = b"NTF1"
_HEAD = struct.Struct("<4sIHHII")
_RUN = struct.Struct("<16sQId")

FRAME_BYTES_MAX = 16 * 1024 * 1024
"""A merged second of 4,096 GPUs of 29 metrics is some 0.9 MiB; sixteen times that is a mistake or an attack."""
FRAME_ROWS_MAX = 262_144
"""Every GPU of Leviathan (300,000) comes in hundreds of frames, never in one."""
RUNS_MAX = 16_384
"""One run a source and frame: 512 nodes merged over 32 frames each."""
SOURCE_BYTES_MAX = 256
"""A host name has at most 253 characters."""
SEQ_END = 1 << 63
"""A counter that is kept in an int64 somewhere must not get there."""
SECONDS_MAX = 9.2e12
"""int64 microseconds end there, 290,000 years from 1970. NaN is not below it either."""
STRING_BYTES_MAX = 64 * 1024
"""The longest honest cell is the stack of a hung rank."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run of rows came from.

    ``source`` names the maker, ``boot`` is a UUID of its process's start, ``seq`` counts its frames from 0, ``rows`` is
    the length of the run, and ``sent`` is the maker's own clock (UTC seconds) when it let the frame go: held against
    the bus's clock it shows how far the maker's clock is off.
    """

    source: str
    boot: uuid.UUID
    seq: int
    rows: int
    sent: float


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows of one schema and their manifest. ``sum(run.rows) == batch.num_rows``, run by run in row order."""

    schema_id: str
    batch: pa.RecordBatch
    manifest: tuple[Run, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.batch.num_rows

    def numbers(self, name: str) -> tuple[Array, Array]:
        """A numeric column as ``(values, valid)``, both of shape ``(rows,)``.

        Where ``valid`` is False the value is absent and what stands in ``values`` (NaN, or 0 for integers) means
        nothing; a NaN where ``valid`` is True is a NaN that arithmetic made.
        """
        column = self.batch.column(name)
        valid = np.asarray(column.is_valid())
        if pa.types.is_floating(column.type):
            return column.to_numpy(zero_copy_only=False), valid
        if column.null_count:
            column = pc.fill_null(column, pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type))
        return column.to_numpy(zero_copy_only=False), valid

    def strings(self, name: str) -> list[str | None]:
        """A text column, ``None`` where absent."""
        return self.batch.column(name).to_pylist()

    def times(self, name: str = "time") -> Array:
        """A time column as float64 seconds since 1970, shape ``(rows,)``; NaN where absent."""
        column = self.batch.column(name)
        micros = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        # In numpy: Arrow refuses to cast integers beyond 2^53, and a time from outside may be any int64.
        return np.where(np.asarray(column.is_valid()), micros / 1e6, np.nan)

    def sent_at(self, now: float) -> "Frame":
        """The same frame with ``now`` as the maker's clock: what is sent again after a wait is stamped again."""
        return replace(self, manifest=tuple(replace(run, sent=now) for run in self.manifest))


class FrameMaker:
    """Makes the frames of one source and counts them."""

    def __init__(self, source: str, boot: uuid.UUID | None = None) -> None:
        if not 0 < len(source.encode()) <= SOURCE_BYTES_MAX:
            raise ValueError(f"a source name has 1 to {SOURCE_BYTES_MAX} bytes, found {source!r}")
        self.source = source
        self.boot = boot or uuid.uuid4()
        self.seq = 0

    def make(self, schema_id: str, columns: Mapping[str, Any], now: float) -> Frame:
        """Make the next frame from ``columns`` (each a sequence, numpy or Arrow array of the same length).

        A column that is not given is null. ``now`` is UTC seconds. An unknown column is a ``KeyError``.
        """
        batch = batch_of(schema_id, columns)
        run = Run(self.source, self.boot, self.seq, batch.num_rows, now)
        self.seq += 1
        return Frame(schema_id, batch, (run,))


def batch_of(schema_id: str, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Rows of a schema from columns; a column that is not given is null, an unknown one is a ``KeyError``."""
    schema = SCHEMAS[schema_id]
    unknown = columns.keys() - set(schema.names)
    if unknown:
        raise KeyError(f"{schema_id} has no column {sorted(unknown)}")
    rows = len(next(iter(columns.values()))) if columns else 0
    arrays = [
        _array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: Any, kind: pa.DataType) -> "pa.Array[Any]":
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    if pa.types.is_timestamp(kind):
        return micros_of(values)
    return pa.array(values, type=kind, from_pandas=False)


def micros_of(seconds: Any) -> "pa.Array[Any]":
    """UTC seconds (floats; ``None`` or NaN is absent) as the bus's time type; what it cannot hold is absent."""
    raw = (
        np.array([np.nan if s is None else s for s in seconds], dtype=np.float64)
        if not isinstance(seconds, np.ndarray)
        else seconds
    )
    absent = ~(np.abs(raw) < SECONDS_MAX)
    micros = np.round(np.where(absent, 0.0, raw) * 1e6).astype(np.int64)
    return pa.array(micros, type=pa.int64(), mask=absent).cast(pa.timestamp("us", tz="UTC"))


def merge(frames: Sequence[Frame]) -> Frame:
    """One frame of all rows and runs, in order: what a gateway makes of many nodes' frames. Schemas must be equal."""
    ids = {frame.schema_id for frame in frames}
    if len(ids) != 1:
        raise ValueError(f"only frames of one schema can be merged, found {sorted(ids)}")
    if len(frames) == 1:
        return frames[0]
    batch = pa.concat_batches([frame.batch for frame in frames])  # type: ignore[attr-defined]  # the stubs lack it
    return Frame(frames[0].schema_id, batch, tuple(run for frame in frames for run in frame.manifest))


def select_runs(frame: Frame, keep: Iterable[bool]) -> Frame:
    """The frame with only the runs for which ``keep`` (one for each run) is true, rows and manifest alike."""
    kept = list(keep)
    if all(kept):
        return frame
    mask = np.repeat(np.array(kept, dtype=bool), [run.rows for run in frame.manifest])
    runs = tuple(run for run, wanted in zip(frame.manifest, kept, strict=True) if wanted)
    return Frame(frame.schema_id, frame.batch.filter(pa.array(mask)), runs)


def encode(frame: Frame) -> bytes:
    """The frame as bytes. Raises :class:`FrameError` for everything that a reader would refuse the frame for."""
    _check_rows(frame.schema_id, frame.batch, frame.manifest)
    schema_id = frame.schema_id.encode()
    parts = [schema_id]
    for run in frame.manifest:
        source = run.source.encode()
        parts.append(struct.pack("<H", len(source)) + source + _RUN.pack(run.boot.bytes, run.seq, run.rows, run.sent))
    named = b"".join(parts)
    padding = -(_HEAD.size + len(named)) % 8
    start = _HEAD.size + len(named) + padding
    columns = frame.batch.num_columns
    rest = b"".join(
        [
            struct.pack("<HHII", len(schema_id), columns, len(frame.manifest), start),
            named,
            bytes(padding),
            memoryview(frame.batch.serialize()),
        ]
    )
    if len(rest) + 8 > FRAME_BYTES_MAX:
        raise FrameError(
            FrameFault.TOO_LARGE, f"a frame of {len(rest) + 8} bytes; at most {FRAME_BYTES_MAX}: make it of fewer rows"
        )
    return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def decode(payload: bytes, allowed: frozenset[str] | None = None) -> Frame:
    """The frame in ``payload``, fully validated; ``allowed`` limits the schema ids.

    A frame with more columns than this reader knows is read without them; one with fewer is filled with nulls. Raises
    :class:`FrameError`, never anything else, and never allocates more than the payload's own size calls for.
    """
    schema_id, columns, manifest, start = _decode_head(payload)
    if allowed is not None and schema_id not in allowed:
        raise FrameError(FrameFault.WRONG_TOPIC, f"a frame of {schema_id}; expected {', '.join(sorted(allowed))} here")
    batch = _decode_batch(payload, start, SCHEMAS[schema_id], columns)
    _check_rows(schema_id, batch, manifest)
    return Frame(schema_id, batch, manifest)


def _check_rows(schema_id: str, batch: pa.RecordBatch, manifest: tuple[Run, ...]) -> None:
    rows = sum(run.rows for run in manifest)
    if rows != batch.num_rows:
        raise FrameError(FrameFault.ROWS_DISAGREE, f"the manifest counts {rows} rows, the batch has {batch.num_rows}")
    if rows > FRAME_ROWS_MAX:
        raise FrameError(FrameFault.TOO_MANY_ROWS, f"{rows} rows; a frame has at most {FRAME_ROWS_MAX}")
    if len(manifest) > RUNS_MAX:
        raise FrameError(FrameFault.BAD_MANIFEST, f"{len(manifest)} runs; a frame has at most {RUNS_MAX}")
    for number, run in enumerate(manifest):
        if not (
            0 < len(run.source.encode()) <= SOURCE_BYTES_MAX and 0 <= run.seq < SEQ_END and abs(run.sent) < SECONDS_MAX
        ):
            raise FrameError(FrameFault.BAD_MANIFEST, f"run {number} (source {run.source[:64]!r}) is not a run")
    _check_cells(schema_id, batch)


def _decode_head(payload: bytes) -> tuple[str, int, tuple[Run, ...], int]:
    if len(payload) < _HEAD.size:
        raise FrameError(FrameFault.TOO_SHORT, f"{len(payload)} bytes; a frame has at least {_HEAD.size}")
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(FrameFault.TOO_LARGE, f"{len(payload)} bytes; a frame has at most {FRAME_BYTES_MAX}")
    magic, crc, id_length, columns, runs, start = _HEAD.unpack_from(payload)
    if magic != MAGIC:
        raise FrameError(FrameFault.NOT_A_FRAME, f"begins with {magic!r}; a frame begins with {MAGIC!r}")
    if crc != zlib.crc32(memoryview(payload)[8:]):
        raise FrameError(
            FrameFault.CHECKSUM, "the checksum does not fit: the frame was cut short or changed on the way"
        )
    if not _HEAD.size + id_length <= start <= len(payload) or runs > RUNS_MAX:
        raise FrameError(
            FrameFault.BAD_MANIFEST, f"{runs} runs and a batch at byte {start} of {len(payload)} cannot be"
        )
    name = payload[_HEAD.size : _HEAD.size + id_length].decode("utf-8", "replace")
    if name not in SCHEMAS:
        raise FrameError(FrameFault.UNKNOWN_SCHEMA, f"schema {name[:64]!r}; known are {', '.join(SCHEMAS)}")
    return name, columns, _decode_runs(payload, _HEAD.size + id_length, start, runs), start


def _decode_runs(payload: bytes, at: int, end: int, count: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    try:
        for _ in range(count):
            (length,) = struct.unpack_from("<H", payload, at)
            source = payload[at + 2 : at + 2 + length].decode()
            boot, seq, rows, sent = _RUN.unpack_from(payload, at + 2 + length)
            at += 2 + length + _RUN.size
            if at > end:
                raise FrameError(FrameFault.BAD_MANIFEST, f"run {len(runs)} of {count} reaches into the batch")
            runs.append(Run(source, uuid.UUID(bytes=boot), seq, rows, sent))
    except (struct.error, UnicodeDecodeError) as error:
        raise FrameError(FrameFault.BAD_MANIFEST, f"run {len(runs)} of {count}: {error}") from error
    return tuple(runs)


def _decode_batch(payload: bytes, start: int, schema: pa.Schema, columns: int) -> pa.RecordBatch:
    try:
        message = pa.ipc.read_message(pa.py_buffer(payload).slice(start))
        if message.type != "record batch":
            raise FrameError(FrameFault.BAD_BATCH, f"expected an Arrow record batch, found {message.type}")
        rows, compressed = _peek(message.metadata.to_pybytes())
        if compressed:
            raise FrameError(
                FrameFault.COMPRESSED, "the batch is compressed, which could hide its size; expected it plain"
            )
        if not 0 <= rows <= FRAME_ROWS_MAX:
            raise FrameError(FrameFault.TOO_MANY_ROWS, f"{rows} rows; a frame has at most {FRAME_ROWS_MAX}")
        known = pa.schema(list(schema)[:columns])
        if missing := [field.name for field in list(schema)[columns:] if not field.nullable and rows]:
            # Before anything is filled with nulls: a frame of no columns could else ask for 262,144 rows of nothing.
            raise FrameError(FrameFault.REQUIRED_NULL, f"{rows} rows without {', '.join(missing)}")
        batch = pa.ipc.read_record_batch(message, known)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, IndexError, struct.error, EOFError) as error:
        raise FrameError(FrameFault.BAD_BATCH, f"the Arrow batch cannot be read: {error}") from error
    if len(known) == len(schema):
        return batch
    filled = [*batch.columns, *(pa.nulls(batch.num_rows, field.type) for field in list(schema)[columns:])]
    return pa.RecordBatch.from_arrays(filled, schema=schema)


def _peek(metadata: bytes) -> tuple[int, bool]:
    """Rows and whether compressed, read from the message's flatbuffer, which Arrow has verified but not yet acted on.

    pyarrow does not show either before it allocates. Tables: Message {version, header type, header}, RecordBatch
    {length, nodes, buffers, compression} (Arrow's format/Message.fbs).
    """
    message = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, message, 2)
    if header is None:
        raise ValueError("the message has no header")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    length = _field(metadata, batch, 0)
    rows = 0 if length is None else struct.unpack_from("<q", metadata, length)[0]
    return rows, _field(metadata, batch, 3) is not None


def _field(buffer: bytes, table: int, index: int) -> int | None:
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    entry = 4 + 2 * index
    if entry >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + entry)[0]
    return table + offset if offset else None


def _check_cells(schema_id: str, batch: pa.RecordBatch) -> None:
    for field, column in zip(SCHEMAS[schema_id], batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise FrameError(
                FrameFault.REQUIRED_NULL, f"{column.null_count} rows without {field.name}, which {schema_id} requires"
            )
        if pa.types.is_string(field.type) and column.null_count < len(column):
            longest = pc.max(pc.binary_length(cast("pa.StringArray", column))).as_py()
            if longest > STRING_BYTES_MAX:
                raise FrameError(
                    FrameFault.STRING_TOO_LONG,
                    f"{field.name} has a text of {longest} bytes; at most {STRING_BYTES_MAX}",
                )
