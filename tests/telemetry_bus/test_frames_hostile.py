"""Bytes from outside: only FrameError ever comes out of `decode`, by the right name, and without a large allocation."""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry_bus import SCHEMAS, Frame, FrameError, FrameFault, FrameMaker, Run, decode, encode
from telemetry_bus.frames import FRAME_BYTES_MAX, FRAME_ROWS_MAX, MAGIC, STRING_BYTES_MAX, batch_of

NOW = 1_700_000_000.0
BOOT = uuid.UUID(int=7)
HEAD = struct.Struct("<8sQHHIII")
COLUMNS, ID_LENGTH, RUNS, NAMES = 16, 18, 20, 24  # where the head's fields begin
SENT, ROWS, END, NAME = 8, 32, 36, 40  # where they are behind the seq of a manifest of one run
MUTATIONS = 400


def sealed(frame: bytes | bytearray) -> bytes:
    """The bytes with a checksum that fits, so that what is behind it is reached."""
    return bytes(frame[:8]) + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(frame[16:]))) + bytes(frame[16:])


def changed(frame: bytes, at: int, kind: str, value: int) -> bytes:
    """The frame with one number of its head changed, and a checksum that fits."""
    changed = bytearray(frame)
    struct.pack_into(kind, changed, at, value)
    return sealed(changed)


def built(schema_id: str, message: bytes, rows: int, *, columns: int | None = None, source: bytes = b"s") -> bytes:
    """A frame of any Arrow message."""
    run = struct.pack("<Qd16sII", 0, NOW, BOOT.bytes, rows, len(source)) + source
    known = len(SCHEMAS[schema_id]) if columns is None else columns
    head = HEAD.pack(MAGIC, 0, known, len(schema_id), 1, len(source), 0)
    return sealed(padded(padded(head + schema_id.encode()) + run) + message)


def padded(data: bytes) -> bytes:
    """Zeros up to a multiple of eight."""
    return data + bytes(-len(data) % 8)


def train() -> bytes:
    """A frame of three rows with absent, zero and NaN cells."""
    columns = {
        "time": [NOW] * 3,
        "job": ["a", "bb", ""],
        "attempt": ["x"] * 3,
        "rank": [1, 2, 3],
        "step": [1, 2, 3],
        "loss": [None, 0.0, float("nan")],
        "skipped": [True, None, False],
        "first_nonfinite": [None, "p", "q"],
    }
    return encode(FrameMaker("node-1", BOOT).make("train/1", columns, NOW))


def dead() -> bytes:
    """A frame with a binary column."""
    columns = {
        "time": [NOW] * 2,
        "topic": ["a", "b"],
        "reason": ["x", "y"],
        "message": ["", ""],
        "payload_bytes": [1, 2],
        "payload": [b"abc", None],
    }
    return encode(FrameMaker("node-1", BOOT).make("dead/1", columns, NOW))


def tick(rows: int = 1) -> bytes:
    """A frame of one column."""
    return encode(FrameMaker("bus", BOOT).make("tick/1", {"time": np.full(rows, NOW)}, NOW))


def gpu(rows: int = 8) -> bytes:
    """A frame of GPUs."""
    columns = {"time": [NOW] * rows, "node": ["n"] * rows, "gpu": range(rows), "simulated": [True] * rows}
    return encode(FrameMaker("n", BOOT).make("gpu/1", columns, NOW))


def refused(payload: bytes, allowed: frozenset[str] | None = None) -> FrameError:
    """The error with which bytes are refused."""
    with pytest.raises(FrameError) as error:
        decode(payload, allowed)
    return error.value


def message_of(frame: bytes) -> bytes:
    """The Arrow message of a frame."""
    return frame[batch_at(frame) :]


def declaring(rows: int) -> bytes:
    """A tick frame whose Arrow message declares so many rows and has one."""
    # The number 3 comes first as the batch's length, then as the length of its column.
    frame = bytearray(tick(3))
    struct.pack_into("<q", frame, frame.index(struct.pack("<q", 3), batch_at(frame)), rows)
    return sealed(frame)


def compressed_bomb() -> bytes:
    """A batch of zeros that zstd makes a thousand times smaller."""
    schema = SCHEMAS["tick/1"]
    batch = pa.RecordBatch.from_arrays(
        [pa.nulls(FRAME_ROWS_MAX, pa.int64()).fill_null(0).cast(schema.field(0).type)], schema=schema
    )
    message = _serialized(batch)
    assert len(message) < batch.nbytes / 500
    return built("tick/1", message, FRAME_ROWS_MAX)


def _serialized(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    return reader.read_next_message().serialize().to_pybytes()


def long_text() -> bytes:
    """A text longer than any honest cell; made past `encode`, which refuses it."""
    columns = {"time": [NOW], "kind": ["xid"], "simulated": [False], "message": ["x" * (STRING_BYTES_MAX + 1)]}
    return built("event/1", batch_of("event/1", columns).serialize().to_pybytes(), 1)


def null_time() -> bytes:
    """A required cell that is null; made past `encode`, which refuses it."""
    return built("tick/1", batch_of("tick/1", {"time": [None]}).serialize().to_pybytes(), 1)


def run_at(frame: bytes | bytearray) -> int:
    """Where the manifest begins."""
    return -(-(HEAD.size + int(struct.unpack_from("<H", frame, ID_LENGTH)[0])) // 8) * 8


def batch_at(frame: bytes | bytearray) -> int:
    """Where the Arrow message of a frame of one run begins."""
    return -(-(run_at(frame) + NAME + int(struct.unpack_from("<I", frame, NAMES)[0])) // 8) * 8


def schema_message() -> bytes:
    """An Arrow message that is no batch."""
    return SCHEMAS["tick/1"].serialize().to_pybytes()


FAULTS: list[tuple[str, FrameFault, Callable[[], bytes], str]] = [
    ("nothing", FrameFault.TOO_SHORT, lambda: b"", "0 bytes"),
    ("half a head", FrameFault.TOO_SHORT, lambda: train()[:19], "19 bytes"),
    ("larger than a frame may be", FrameFault.TOO_LARGE, lambda: bytes(FRAME_BYTES_MAX + 1), str(FRAME_BYTES_MAX)),
    ("text", FrameFault.NOT_A_FRAME, lambda: b'{"time": 1700000000, "loss": 1.25}', "NTF2"),
    ("a wrong checksum", FrameFault.CHECKSUM, lambda: train()[:-1] + b"\xff", "cut short or changed"),
    ("cut short", FrameFault.CHECKSUM, lambda: train()[:-8], "cut short or changed"),
    (
        "an unknown schema",
        FrameFault.UNKNOWN_SCHEMA,
        lambda: sealed(train().replace(b"train/1", b"train/9")),
        "train/9",
    ),
    (
        "a schema that is no text",
        FrameFault.UNKNOWN_SCHEMA,
        lambda: sealed(train().replace(b"train/1", b"\xff" * 7)),
        "known",
    ),
    ("too many runs", FrameFault.BAD_MANIFEST, lambda: changed(train(), RUNS, "<I", 2**32 - 1), "4294967295 runs"),
    ("more runs than are there", FrameFault.BAD_MANIFEST, lambda: changed(train(), RUNS, "<I", 2), "names"),
    ("names beyond the end", FrameFault.BAD_MANIFEST, lambda: changed(train(), NAMES, "<I", 2**32 - 1), "cannot be"),
    (
        "a schema id that reaches outside",
        FrameFault.BAD_MANIFEST,
        lambda: changed(train(), ID_LENGTH, "<H", 65535),
        "cannot be",
    ),
    (
        "a source that reaches outside",
        FrameFault.BAD_MANIFEST,
        lambda: changed(train(), run_at(train()) + END, "<I", 65535),
        "names",
    ),
    (
        "a source of no name",
        FrameFault.BAD_MANIFEST,
        lambda: built("tick/1", message_of(tick()), 1, source=b""),
        "run 0",
    ),
    (
        "a long source",
        FrameFault.BAD_MANIFEST,
        lambda: built("tick/1", message_of(tick()), 1, source=b"x" * 257),
        "run 0",
    ),
    (
        "a source that is no text",
        FrameFault.BAD_MANIFEST,
        lambda: built("tick/1", message_of(tick()), 1, source=b"\xff"),
        "utf-8",
    ),
    (
        "an infinite clock",
        FrameFault.BAD_MANIFEST,
        lambda: changed(train(), run_at(train()) + SENT, "<Q", 0x7FF0 << 48),
        "run 0",
    ),
    (
        "a count beyond int64",
        FrameFault.BAD_MANIFEST,
        lambda: changed(train(), run_at(train()), "<Q", 2**63),
        "run 0",
    ),
    (
        "a manifest of other rows",
        FrameFault.ROWS_DISAGREE,
        lambda: changed(train(), run_at(train()) + ROWS, "<I", 4),
        "counts 4",
    ),
    ("a batch of no bytes", FrameFault.BAD_BATCH, lambda: built("tick/1", b"", 1), "cannot be read"),
    ("a batch of noise", FrameFault.BAD_BATCH, lambda: built("tick/1", bytes(range(256)), 1), "cannot be read"),
    ("a message that is no batch", FrameFault.BAD_BATCH, lambda: built("tick/1", schema_message(), 1), "schema"),
    ("another schema's batch", FrameFault.BAD_BATCH, lambda: built("train/1", message_of(tick()), 1), "cannot be read"),
    ("a compressed batch", FrameFault.COMPRESSED, compressed_bomb, "compressed"),
    ("2^40 rows", FrameFault.TOO_MANY_ROWS, lambda: declaring(2**40), str(2**40)),
    ("-1 rows", FrameFault.TOO_MANY_ROWS, lambda: declaring(-1), "-1"),
    ("one row too many", FrameFault.TOO_MANY_ROWS, lambda: declaring(FRAME_ROWS_MAX + 1), str(FRAME_ROWS_MAX)),
    ("more rows than there are cells", FrameFault.BAD_BATCH, lambda: declaring(FRAME_ROWS_MAX), "cannot be read"),
    ("a required null", FrameFault.REQUIRED_NULL, null_time, "time"),
    ("rows of no columns", FrameFault.REQUIRED_NULL, lambda: changed(tick(), COLUMNS, "<H", 0), "time"),
    ("a long text", FrameFault.STRING_TOO_LONG, long_text, "message"),
]


@pytest.mark.parametrize(("fault", "payload", "named"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_what_is_no_frame_is_refused_by_name(fault: FrameFault, payload: Callable[[], bytes], named: str) -> None:
    """Every fault has its own reason, and its message names what was found."""
    error = refused(payload())
    assert error.reason is fault
    assert str(error).startswith(fault.value)
    assert named in str(error)
    assert len(str(error)) < 2000


def test_a_frame_of_another_topic_is_refused() -> None:
    """The message names what was expected here."""
    error = refused(tick(), frozenset({"train/1"}))
    assert error.reason is FrameFault.WRONG_TOPIC
    assert "tick/1" in str(error)
    assert "train/1" in str(error)


def test_every_fault_of_a_frame_is_reached_here() -> None:
    """A new fault needs a test; a row out of its window is the intake's, and what is foreign the gateway's."""
    elsewhere = {FrameFault.WRONG_TOPIC, FrameFault.OUT_OF_WINDOW, FrameFault.FOREIGN}
    assert {case[1] for case in FAULTS} == set(FrameFault) - elsewhere


@pytest.mark.parametrize("frame", [train(), dead(), tick(), gpu()], ids=["train", "dead", "tick", "gpu"])
def test_a_frame_cut_at_any_byte_is_refused(frame: bytes) -> None:
    """As it arrives, and with a checksum that was made to fit."""
    for length in range(len(frame)):
        assert refused(frame[:length]).reason in (FrameFault.TOO_SHORT, FrameFault.CHECKSUM)
        if length >= HEAD.size:
            with contextlib.suppress(FrameError):
                assert decode(sealed(frame[:length])).rows in (1, 2, 3, 8)  # only padding was cut off


def test_any_flipped_bit_is_noticed() -> None:
    """The checksum covers all that follows it."""
    frame = tick()
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)).reason in (FrameFault.CHECKSUM, FrameFault.NOT_A_FRAME)


def read_all(payload: bytes) -> None:
    """Decode and touch every cell: only FrameError may come out."""
    try:
        frame = decode(payload)
    except FrameError:
        return
    assert frame.rows == sum(run.rows for run in frame.manifest)
    for field in frame.batch.schema:
        if pa.types.is_timestamp(field.type):
            frame.times(field.name)
        elif pa.types.is_string(field.type):
            frame.strings(field.name)
        elif not pa.types.is_binary(field.type):
            frame.numbers(field.name)
    assert encode(frame)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(payload: bytes) -> None:
    """Noise, noise behind a right magic, and noise behind a right checksum."""
    for noise in (payload, MAGIC + payload, sealed(MAGIC + bytes(8) + payload)):
        read_all(noise)


BASES = [train(), dead(), tick(3), gpu()]
NUMBERS = [0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, -(2**63)]


@settings(max_examples=MUTATIONS)
@given(
    base=st.sampled_from(BASES),
    changes=st.lists(
        st.tuples(st.integers(0, 4095), st.sampled_from([1, 2, 4, 8]), st.sampled_from(NUMBERS) | st.integers(0, 255)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_changed_frame_with_a_right_checksum_is_read_or_refused(
    base: bytes, changes: list[tuple[int, int, int]]
) -> None:
    """Lengths, offsets and counts of the manifest and of Arrow's own message, changed one by one and together."""
    frame = bytearray(base)
    for at, width, value in changes:
        place = 16 + at % (len(frame) - 16 - width)
        frame[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    read_all(sealed(frame))


def test_every_word_of_the_arrow_message_may_be_anything() -> None:
    """Each four bytes of the flatbuffer and the body are set to the values at which sizes and offsets break."""
    for base in BASES[1:3]:
        for at in range(batch_at(base), len(base) - 4, 4):
            for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
                read_all(changed(base, at, "<I", value))


BOMBS: dict[str, Callable[[], bytes]] = {
    "zstd": compressed_bomb,
    "2^40 rows": lambda: declaring(2**40),
    "rows without cells": lambda: declaring(FRAME_ROWS_MAX),
    "rows without columns": lambda: changed(declaring(FRAME_ROWS_MAX), COLUMNS, "<H", 0),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_payload_cannot_make_a_large_allocation(bomb: str) -> None:
    """Sizes are believed only as far as the bytes go that carry them."""
    payload = BOMBS[bomb]()
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        refused(payload)
        assert (pool.max_memory() or 0) <= 4096
    finally:
        pa.set_memory_pool(usual)


@pytest.mark.parametrize("columns", [len(SCHEMAS["train/1"]) - 1, 14], ids=["one column fewer", "the first 14 columns"])
def test_an_older_writer_knew_fewer_columns(columns: int) -> None:
    """What it did not know is null."""
    whole = decode(train())
    older = whole.batch.select(list(range(columns)))
    frame = decode(built("train/1", older.serialize().to_pybytes(), 3, columns=columns))
    assert frame.batch.schema == SCHEMAS["train/1"]
    assert frame.batch.column("step").to_pylist() == [1, 2, 3]
    assert all(frame.batch.column(at).null_count == 3 for at in range(columns, frame.batch.num_columns))


@pytest.mark.parametrize("kind", [pa.float64(), pa.string(), pa.list_(pa.int32())], ids=str)
def test_a_newer_writer_knows_more_columns(kind: pa.DataType) -> None:
    """What this reader does not know is left out, and the rest is whole."""
    whole = decode(train())
    newer = pa.RecordBatch.from_arrays(
        [*whole.batch.columns, pa.array([None] * 3, kind)], schema=whole.batch.schema.append(pa.field("newer", kind))
    )
    frame = decode(built("train/1", newer.serialize().to_pybytes(), 3, columns=newer.num_columns))
    assert frame.batch.schema == SCHEMAS["train/1"]
    assert frame.batch.column("first_nonfinite").to_pylist() == [None, "p", "q"]
    assert frame.batch.column("skipped").to_pylist() == [True, None, False]


def test_an_empty_frame_is_a_frame() -> None:
    """No rows, one run or none."""
    for manifest in ((), (Run("s", BOOT, 0, 0, NOW),)):
        frame = decode(encode(Frame("train/1", batch_of("train/1", {}), manifest)))
        assert frame.rows == 0
        assert frame.manifest == manifest


def test_an_absent_text_may_lie_over_any_bytes() -> None:
    """What stands under a null is no text, however long it is."""
    hidden = STRING_BYTES_MAX + 1
    offsets, nulls = pa.py_buffer(struct.pack("<ii", 0, hidden)), pa.py_buffer(b"\0")
    text = pa.Array.from_buffers(pa.string(), 1, [nulls, offsets, pa.py_buffer(bytes(hidden))])
    whole = batch_of("event/1", {"time": [NOW], "kind": ["xid"], "simulated": [False]})
    batch = whole.set_column(whole.schema.get_field_index("message"), "message", text)
    frame = decode(built("event/1", batch.cast(SCHEMAS["event/1"]).serialize().to_pybytes(), 1))
    assert frame.strings("message") == [None]
