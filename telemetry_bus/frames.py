"""Frames: many rows of one schema, with a manifest that says where every run of rows came from.

On the wire a frame is::

    magic      8 bytes   b"NTF2" and four zeros
    checksum   uint64    XXH3-64 of everything behind it
    columns    uint16    how many columns the writer knew
    schema     uint16    length of the schema id
    runs       uint32    runs in the manifest
    names      uint32    bytes of all source names
    zero       uint32
    id         ...       the schema id, zeros up to the next multiple of 8
    manifest   ...       of all runs: seq (uint64), sent (float64), boot (16 bytes), rows (uint32), end of the name
                         (uint32); then the names, zeros up to the next multiple of 8
    message    ...       one Arrow IPC record batch message, bare and uncompressed

All integers are little endian. A whole Arrow stream would carry its schema in every frame, which weighs six times the
values of a small one; here the id stands for it. The manifest is by column, so that the runs of a merged frame are read
as arrays. Nothing is believed before it is checked: see :func:`decode`.
"""

import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.manifest import SECONDS_MAX, SEQ_END, SOURCE_BYTES_MAX, Array, Manifest, Run
from telemetry_bus.schemas import SCHEMAS

__all__ = [
    "FRAME_BYTES_MAX",
    "FRAME_ROWS_MAX",
    "MAGIC",
    "RUNS_MAX",
    "SECONDS_MAX",
    "SEQ_END",
    "SOURCE_BYTES_MAX",
    "STRING_BYTES_MAX",
    "Array",
    "Frame",
    "FrameMaker",
    "Manifest",
    "Run",
    "batch_of",
    "decode",
    "encode",
    "merge",
    "micros_of",
    "select_runs",
]

MAGIC = b"NTF2\0\0\0\0"
_HEAD = struct.Struct("<8sQHHIII")
_COVERED = 16
"""The checksum is of everything from here on."""
_RUN_BYTES = 8 + 8 + 16 + 4 + 4

FRAME_BYTES_MAX = 16 * 1024 * 1024
"""A merged second of 4,096 GPUs of 29 metrics is some 0.9 MiB; sixteen times that is a mistake or an attack."""
FRAME_ROWS_MAX = 262_144
"""Every GPU of Leviathan (300,000) comes in hundreds of frames, never in one."""
RUNS_MAX = 16_384
"""One run a source and frame: 512 nodes merged over 32 frames each."""
KEPT_NULLS_ROWS_MAX = 256
"""Up to so many rows (of a node) the columns of nulls are kept from frame to frame: 64 times 130 columns of 1 KiB."""
STRING_BYTES_MAX = 64 * 1024
"""The longest honest cell is the stack of a hung rank."""


@dataclass(frozen=True, slots=True, init=False)
class Frame:
    """Rows of one schema and their manifest. ``sum(run.rows) == batch.num_rows``, run by run in row order."""

    schema_id: str
    batch: pa.RecordBatch
    manifest: Manifest

    def __init__(self, schema_id: str, batch: pa.RecordBatch, manifest: Sequence[Run]) -> None:
        object.__setattr__(self, "schema_id", schema_id)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "manifest", manifest if isinstance(manifest, Manifest) else Manifest.of(manifest))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.batch.num_rows

    def numbers(self, name: str) -> tuple[Array, Array]:
        """A numeric column as ``(values, valid)``, both of shape ``(rows,)`` and to be read only.

        Where ``valid`` is False the value is absent and what stands in ``values`` (NaN, or 0 for integers) means
        nothing; a NaN where ``valid`` is True is a NaN that arithmetic made.
        """
        column = self.batch.column(name)
        if not column.null_count:
            return column.to_numpy(zero_copy_only=False), np.broadcast_to(np.True_, len(column))
        valid = np.asarray(column.is_valid())
        if not pa.types.is_floating(column.type):
            column = pc.fill_null(column, pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type))
        return column.to_numpy(zero_copy_only=False), valid

    def strings(self, name: str) -> list[str | None]:
        """A text column, ``None`` where absent."""
        return self.batch.column(name).to_pylist()

    def times(self, name: str = "time") -> Array:
        """A time column as float64 seconds since 1970, shape ``(rows,)``; NaN where absent."""
        column = self.batch.column(name)
        if not column.null_count:
            return np.asarray(column.cast(pa.int64()).to_numpy() / 1e6)
        micros = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        # In numpy: Arrow refuses to cast integers beyond 2^53, and a time from outside may be any int64.
        return np.where(np.asarray(column.is_valid()), micros / 1e6, np.nan)

    def sent_at(self, now: float) -> "Frame":
        """The same frame with ``now`` as the maker's clock: what is sent again after a wait is stamped again."""
        return replace(self, manifest=self.manifest.sent_at(now))


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
    kinds = _kinds(schema_id)
    if unknown := columns.keys() - kinds.keys():
        raise KeyError(f"{schema_id} has no column {sorted(unknown)}")
    rows = len(next(iter(columns.values()))) if columns else 0
    kept = _kept_nulls(schema_id, rows) if rows <= KEPT_NULLS_ROWS_MAX else {}
    arrays = [
        _array(columns[name], kind) if name in columns else kept[name] if kept else pa.nulls(rows, kind)
        for name, kind in kinds.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@lru_cache(maxsize=len(SCHEMAS))
def _kinds(schema_id: str) -> dict[str, Any]:
    """The columns of a schema, by name; asked for a thousand times more often than a schema changes."""
    return {field.name: field.type for field in SCHEMAS[schema_id]}


@lru_cache(maxsize=64)
def _kept_nulls(schema_id: str, rows: int) -> dict[str, "pa.Array[Any]"]:
    """A column of nulls for each column: a node makes frames of as many rows each second."""
    return {name: pa.nulls(rows, kind) for name, kind in _kinds(schema_id).items()}


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
    return Frame(frames[0].schema_id, batch, Manifest.joined([frame.manifest for frame in frames]))


def select_runs(frame: Frame, keep: Iterable[bool]) -> Frame:
    """The frame with only the runs for which ``keep`` (one for each run) is true, rows and manifest alike."""
    kept = np.fromiter(keep, dtype=bool, count=len(frame.manifest))
    if kept.all():
        return frame
    mask = np.repeat(kept, frame.manifest.rows)
    return Frame(frame.schema_id, frame.batch.filter(pa.array(mask)), frame.manifest.selected(kept))


def encode(frame: Frame) -> bytes:
    """The frame as bytes. Raises :class:`FrameError` for everything that a reader would refuse the frame for."""
    _check_rows(frame.schema_id, frame.batch, frame.manifest)
    schema_id, runs = frame.schema_id.encode(), frame.manifest
    known = _columns_with_values(frame.batch)
    message = memoryview(frame.batch.select(list(range(known))).serialize())
    manifest: list[bytes] = [
        *(runs.seqs.astype("<u8").tobytes(), runs.sents.astype("<f8").tobytes(), runs.boots),
        *(runs.rows.astype("<u4").tobytes(), runs.ends.astype("<u4").tobytes(), runs.names),
    ]
    begin, end = _places(len(schema_id), len(runs), len(runs.names))
    size = end + len(message)
    if size > FRAME_BYTES_MAX:
        raise FrameError(
            FrameFault.TOO_LARGE, f"a frame of {size} bytes; at most {FRAME_BYTES_MAX}: make it of fewer rows"
        )
    head = struct.pack("<HHIII", known, len(schema_id), len(runs), len(runs.names), 0)
    filled = begin - _HEAD.size - len(schema_id)
    behind = end - begin - sum(map(len, manifest))
    covered = xxhash.xxh3_64()
    parts: list[bytes | memoryview] = [head, schema_id, bytes(filled), *manifest, bytes(behind), message]
    for part in parts:
        covered.update(part)
    return b"".join((MAGIC, struct.pack("<Q", covered.intdigest()), *parts))


def _columns_with_values(batch: pa.RecordBatch) -> int:
    """How many columns are sent: those behind the last one with a value are null everywhere, as in a frame of a writer
    that did not know them."""
    columns = batch.num_columns
    while columns > 1 and batch.column(columns - 1).null_count == batch.num_rows:
        columns -= 1
    return columns


def _places(id_length: int, runs: int, names: int) -> tuple[int, int]:
    """Where the manifest and the Arrow message begin."""
    begin = _aligned(_HEAD.size + id_length)
    return begin, _aligned(begin + runs * _RUN_BYTES + names)


def _aligned(size: int) -> int:
    return size + -size % 8


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


def _check_rows(schema_id: str, batch: pa.RecordBatch, manifest: Manifest) -> None:
    if len(manifest) > RUNS_MAX:
        raise FrameError(FrameFault.BAD_MANIFEST, f"{len(manifest)} runs; a frame has at most {RUNS_MAX}")
    if (fault := manifest.fault()) is not None:
        raise FrameError(FrameFault.BAD_MANIFEST, fault)
    rows = int(manifest.rows.sum())
    if rows != batch.num_rows:
        raise FrameError(FrameFault.ROWS_DISAGREE, f"the manifest counts {rows} rows, the batch has {batch.num_rows}")
    if rows > FRAME_ROWS_MAX:
        raise FrameError(FrameFault.TOO_MANY_ROWS, f"{rows} rows; a frame has at most {FRAME_ROWS_MAX}")
    _check_cells(schema_id, batch)


def _decode_head(payload: bytes) -> tuple[str, int, Manifest, int]:
    if len(payload) < _HEAD.size:
        raise FrameError(FrameFault.TOO_SHORT, f"{len(payload)} bytes; a frame has at least {_HEAD.size}")
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(FrameFault.TOO_LARGE, f"{len(payload)} bytes; a frame has at most {FRAME_BYTES_MAX}")
    magic, checksum, columns, id_length, runs, names, _zero = _HEAD.unpack_from(payload)
    if magic != MAGIC:
        raise FrameError(FrameFault.NOT_A_FRAME, f"begins with {magic!r}; a frame begins with {MAGIC!r}")
    if checksum != xxhash.xxh3_64_intdigest(memoryview(payload)[_COVERED:]):
        raise FrameError(
            FrameFault.CHECKSUM, "the checksum does not fit: the frame was cut short or changed on the way"
        )
    begin, start = _places(id_length, runs, names)
    if start > len(payload) or runs > RUNS_MAX:
        raise FrameError(
            FrameFault.BAD_MANIFEST, f"{runs} runs and a batch at byte {start} of {len(payload)} cannot be"
        )
    name = payload[_HEAD.size : _HEAD.size + id_length].decode("utf-8", "replace")
    if name not in SCHEMAS:
        raise FrameError(FrameFault.UNKNOWN_SCHEMA, f"schema {name[:64]!r}; known are {', '.join(SCHEMAS)}")
    return name, columns, _decode_runs(payload, begin, runs, names), start


def _decode_runs(payload: bytes, at: int, runs: int, names: int) -> Manifest:
    seqs = np.frombuffer(payload, "<i8", runs, at)
    sents = np.frombuffer(payload, "<f8", runs, at + 8 * runs)
    boots = payload[at + 16 * runs : at + 32 * runs]
    rows = np.frombuffer(payload, "<u4", runs, at + 32 * runs).astype(np.int64)
    ends = np.frombuffer(payload, "<u4", runs, at + 36 * runs).astype(np.int64)
    if (int(ends[-1]) if runs else 0) != names:
        raise FrameError(FrameFault.BAD_MANIFEST, f"the names of {runs} runs do not end where they should, at {names}")
    return Manifest(boots, payload[at + 40 * runs : at + 40 * runs + names], ends, seqs, rows, sents)


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
    schema = SCHEMAS[schema_id]
    for at in _REQUIRED[schema_id]:
        if absent := batch.column(at).null_count:
            raise FrameError(
                FrameFault.REQUIRED_NULL, f"{absent} rows without {schema.field(at).name}, which {schema_id} requires"
            )
    for at in _TEXTS[schema_id]:
        column = cast("pa.StringArray", batch.column(at))
        if _text_bytes(column) <= STRING_BYTES_MAX or column.null_count == len(column):
            continue  # all together are no longer than one may be
        longest = pc.max(pc.binary_length(column)).as_py()
        if longest > STRING_BYTES_MAX:
            raise FrameError(
                FrameFault.STRING_TOO_LONG,
                f"{schema.field(at).name} has a text of {longest} bytes; at most {STRING_BYTES_MAX}",
            )


_REQUIRED = {name: [at for at, field in enumerate(schema) if not field.nullable] for name, schema in SCHEMAS.items()}
_TEXTS = {
    name: [at for at, field in enumerate(schema) if pa.types.is_string(field.type)] for name, schema in SCHEMAS.items()
}


def _text_bytes(column: "pa.StringArray") -> int:
    """The bytes of all texts together, and so at least those of the longest."""
    data = column.buffers()[2]
    return 0 if data is None else data.size
