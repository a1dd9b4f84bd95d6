"""Frames: what goes in comes out, and what is no frame is refused by name."""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry_bus import SCHEMAS, Frame, FrameError, FrameFault, FrameMaker, Run, decode, encode, merge
from telemetry_bus.frames import FRAME_ROWS_MAX, STRING_BYTES_MAX, batch_of, select_runs

NOW = 1_700_000_000.0
BOOT = uuid.UUID(int=7)
CELLS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.timestamp("us", tz="UTC"): st.integers(-(2**50), 2**50),
    pa.string(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
    pa.float64(): st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
}


@st.composite
def frames(draw: st.DrawFn, schema_id: str) -> Frame:
    """A frame of a schema: any cells, any runs."""
    schema = SCHEMAS[schema_id]
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    rows = sum(lengths)
    columns = []
    for field in schema:
        cell = CELLS[field.type] if not field.nullable else st.none() | CELLS[field.type]
        columns.append(pa.array(draw(st.lists(cell, min_size=rows, max_size=rows)), field.type))
    runs = tuple(
        Run(
            draw(st.text(min_size=1, max_size=9)),
            draw(st.uuids()),
            draw(st.integers(0, 2**63 - 2)),
            length,
            NOW + length,
        )
        for length in lengths
    )
    return Frame(schema_id, pa.RecordBatch.from_arrays(columns, schema=schema), runs)


def same(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    """Whether two batches hold the same cells: null, zero and NaN are three things, and so are 0.0 and -0.0."""
    return left.schema == right.schema and all(
        repr(mine.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(mine.type) else mine.to_pylist())
        == repr(other.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(other.type) else other.to_pylist())
        for mine, other in zip(left.columns, right.columns, strict=True)
    )


def train(*losses: float | None, source: str = "node-1", seq: int = 0, sent: float = NOW) -> Frame:
    """A frame of one run of train/1 rows."""
    batch = batch_of(
        "train/1",
        {
            "time": [NOW] * len(losses),
            "job": ["job"] * len(losses),
            "attempt": ["a1"] * len(losses),
            "rank": range(len(losses)),
            "step": [1] * len(losses),
            "loss": list(losses),
        },
    )
    return Frame("train/1", batch, (Run(source, BOOT, seq, len(losses), sent),))


@pytest.mark.parametrize("schema_id", SCHEMAS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_frame_is_decoded_as_it_was_encoded(schema_id: str, data: st.DataObject) -> None:
    """Every schema, every cell, every run."""
    frame = data.draw(frames(schema_id))
    decoded = decode(encode(frame), frozenset({schema_id}))
    assert decoded.schema_id == schema_id
    assert decoded.manifest == frame.manifest
    assert same(decoded.batch, frame.batch)


def test_null_zero_and_nan_are_three_things() -> None:
    """Absent is not valid, zero is zero, and a NaN that arithmetic made is valid."""
    values, valid = decode(encode(train(None, 0.0, math.nan, math.inf, -0.0))).numbers("loss")
    assert valid.tolist() == [False, True, True, True, True]
    assert values[1] == 0.0
    assert math.isnan(values[2])
    assert values[3] == math.inf
    assert math.copysign(1.0, values[4]) == -1.0


@pytest.mark.parametrize(
    ("name", "cells", "valid"),
    [
        ("nonfinite", [None, 0, 2**62], [False, True, True]),
        ("skipped", [None, False, True], [False, True, True]),
        ("rank", [1, 0, -1], [True, True, True]),
    ],
)
def test_whole_numbers_keep_their_absence_beside_them(name: str, cells: list[Any], valid: list[bool]) -> None:
    """An absent integer or boolean is told by `valid` alone, and large counters stay exact."""
    columns = {"time": [NOW] * 3, "job": ["j"] * 3, "attempt": ["a"] * 3, "rank": [0] * 3, "step": [0] * 3, name: cells}
    values, found = Frame("train/1", batch_of("train/1", columns), ()).numbers(name)
    assert found.tolist() == valid
    assert [value for value, there in zip(values.tolist(), valid, strict=True) if there] == [
        cell for cell in cells if cell is not None
    ]


def test_numpy_nan_is_a_value_and_not_an_absence() -> None:
    """A column that comes as a numpy array keeps its NaNs as NaNs."""
    frame = FrameMaker("s").make("gpu/1", {"time": np.array([NOW]), "power_watts": np.array([np.nan])}, NOW)
    assert frame.batch.column("power_watts").null_count == 0


@pytest.mark.parametrize(
    "absent", [None, math.nan, math.inf, 1e300], ids=["none", "nan", "inf", "beyond the time type"]
)
def test_a_time_that_cannot_be_held_is_absent(absent: float | None) -> None:
    """It is never another time."""
    frame = FrameMaker("s").make("tick/1", {"time": [NOW + 0.25, absent]}, NOW)
    times = frame.times()
    assert times[0] == NOW + 0.25
    assert math.isnan(times[1])


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time_from_outside_can_be_read(micros: int) -> None:
    """int64 microseconds are more than a float holds exactly: near now to the microsecond, elsewhere about right."""
    batch = pa.RecordBatch.from_arrays(
        [pa.array([micros], SCHEMAS["tick/1"].field("time").type)], schema=SCHEMAS["tick/1"]
    )
    frame = decode(encode(Frame("tick/1", batch, (Run("s", BOOT, 0, 1, NOW),))))
    assert frame.times()[0] == pytest.approx(micros / 1e6)


def test_a_maker_counts_its_frames() -> None:
    """seq runs from 0 without holes, under one boot."""
    maker = FrameMaker("node-1")
    runs = [maker.make("tick/1", {"time": [NOW]}, NOW).manifest[0] for _ in range(3)]
    assert [run.seq for run in runs] == [0, 1, 2]
    assert {run.boot for run in runs} == {maker.boot}


@pytest.mark.parametrize("source", ["", "x" * 257], ids=["empty", "too long"])
def test_a_source_has_a_name_of_bounded_length(source: str) -> None:
    """An empty name and a long one are refused before a frame is made."""
    with pytest.raises(ValueError, match="1 to 256 bytes"):
        FrameMaker(source)


def test_a_column_that_no_schema_has_is_named() -> None:
    """A misspelt column is an error and not a silent loss."""
    with pytest.raises(KeyError, match="los_"):
        FrameMaker("s").make("train/1", {"time": [NOW], "los_": [1.0]}, NOW)


def test_merging_frames_merges_rows_and_manifests() -> None:
    """The rows follow each other as the runs do."""
    merged = decode(encode(merge([train(1.0, None), train(), train(math.nan, source="node-2", seq=9)])))
    assert [(run.source, run.seq, run.rows) for run in merged.manifest] == [
        ("node-1", 0, 2),
        ("node-1", 0, 0),
        ("node-2", 9, 1),
    ]
    assert repr(merged.batch.column("loss").to_pylist()) == "[1.0, None, nan]"


def test_frames_of_two_schemas_are_not_merged() -> None:
    """The message names both."""
    with pytest.raises(ValueError, match=r"gpu/1.*train/1"):
        merge([train(1.0), Frame("gpu/1", batch_of("gpu/1", {}), ())])


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=8))
def test_selecting_runs_keeps_their_rows_and_no_others(runs: list[tuple[int, bool]]) -> None:
    """Rows and manifest stay one, whatever the lengths of the runs."""
    frame = merge([train(*[float(number)] * length, seq=number) for number, (length, _) in enumerate(runs)])
    kept = select_runs(frame, [keep for _, keep in runs])
    assert [run.seq for run in kept.manifest] == [number for number, (_, keep) in enumerate(runs) if keep]
    assert kept.batch.column("loss").to_pylist() == [
        float(number) for number, (length, keep) in enumerate(runs) if keep for _ in range(length)
    ]
    assert decode(encode(kept)).manifest == kept.manifest


def test_a_frame_sent_again_is_stamped_again() -> None:
    """Only the maker's clock changes."""
    frame = train(1.0)
    again = frame.sent_at(NOW + 60)
    assert [run.sent for run in again.manifest] == [NOW + 60]
    assert again.manifest[0].seq == frame.manifest[0].seq
    assert again.batch is frame.batch


@pytest.mark.parametrize(
    ("fault", "frame"),
    [
        (FrameFault.REQUIRED_NULL, Frame("tick/1", batch_of("tick/1", {"time": [None]}), (Run("s", BOOT, 0, 1, NOW),))),
        (FrameFault.ROWS_DISAGREE, Frame("train/1", train(1.0).batch, ())),
        (FrameFault.BAD_MANIFEST, train(1.0, sent=math.nan)),
        (FrameFault.BAD_MANIFEST, train(1.0, seq=2**63 - 1)),
        (FrameFault.BAD_MANIFEST, train(1.0, source="")),
        (FrameFault.BAD_MANIFEST, Frame("train/1", train().batch, tuple(train().manifest) * 16385)),
        (
            FrameFault.TOO_MANY_ROWS,
            Frame(
                "tick/1",
                batch_of("tick/1", {"time": np.full(FRAME_ROWS_MAX + 1, NOW)}),
                (Run("s", BOOT, 0, FRAME_ROWS_MAX + 1, NOW),),
            ),
        ),
        (
            FrameFault.STRING_TOO_LONG,
            Frame(
                "train/1",
                batch_of(
                    "train/1",
                    {"time": [NOW], "job": ["x" * (STRING_BYTES_MAX + 1)], "attempt": [""], "rank": [0], "step": [0]},
                ),
                (Run("s", BOOT, 0, 1, NOW),),
            ),
        ),
        (
            FrameFault.TOO_LARGE,
            Frame(
                "dead/1",
                batch_of(
                    "dead/1",
                    {
                        "time": [NOW],
                        "topic": [""],
                        "reason": [""],
                        "message": [""],
                        "payload_bytes": [1],
                        "payload": [bytes(16 * 1024 * 1024)],
                    },
                ),
                (Run("s", BOOT, 0, 1, NOW),),
            ),
        ),
    ],
    ids=["required null", "rows", "sent", "seq", "no source", "runs", "too many rows", "long text", "too large"],
)
def test_what_no_reader_would_take_is_not_encoded(fault: FrameFault, frame: Frame) -> None:
    """The maker hears it, and not a dead-letter topic far away."""
    with pytest.raises(FrameError) as refused:
        encode(frame)
    assert refused.value.reason is fault
