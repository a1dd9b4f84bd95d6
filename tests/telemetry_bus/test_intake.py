"""The intake: wrong clocks, rows out of their window, repetition, and refusals that hurt nothing else."""

from __future__ import annotations

import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import TOPIC_SCHEMAS, Frame, FrameFault, FrameMaker, Intake, Record, Run, Topic, encode, merge
from telemetry_bus.frames import batch_of
from telemetry_bus.intake import (
    BACKLOG_SECONDS_MAX,
    CLOCK_TOLERANCE_SECONDS,
    FUTURE_SECONDS_MAX,
    LATE_SECONDS_MAX,
    topic_of,
)

NOW = 1_700_000_000.0
TEN_YEARS = 10 * 365.25 * 86400
BOOT = uuid.UUID(int=7)


def gpu(*times: float, sent: float = NOW, source: str = "node-1", seq: int = 0) -> Frame:
    """A frame of one run of gpu/1 rows."""
    rows = len(times)
    columns = {"time": list(times), "node": [source] * rows, "gpu": range(rows), "simulated": [False] * rows}
    return Frame("gpu/1", batch_of("gpu/1", columns), (Run(source, BOOT, seq, rows, sent),))


def record(payload: Frame | bytes, topic: Topic = Topic.GPU, time: float = NOW) -> Record:
    """What the bus would hand out."""
    return Record(topic, 0, 1, time, encode(payload) if isinstance(payload, Frame) else payload)


def test_a_frame_is_handed_on_as_it_was_made() -> None:
    """Rows, cells, manifest and times to the microsecond."""
    frame = gpu(NOW - 0.123456, NOW)
    taken = Intake().take(record(frame))
    assert taken.frame is not None
    assert taken.refusals == ()
    assert taken.frame.batch.equals(frame.batch)
    assert taken.frame.manifest == frame.manifest


@pytest.mark.parametrize(
    "offset", [TEN_YEARS, -TEN_YEARS, 3600.0, -6.0], ids=["+10 years", "-10 years", "+1 h", "-6 s"]
)
def test_the_offset_of_a_wrong_clock_is_taken_off_and_remembered(offset: float) -> None:
    """A wrong clock is no reason to lose a live row."""
    intake = Intake()
    taken = intake.take(record(gpu(NOW + offset - 2.0, NOW + offset, sent=NOW + offset)))
    assert taken.refusals == ()
    assert taken.frame is not None
    assert taken.frame.times().tolist() == pytest.approx([NOW - 2.0, NOW], abs=1e-5)
    assert intake.clock_offsets == {"node-1": pytest.approx(offset)}


def test_each_run_of_a_merged_frame_has_its_own_clock() -> None:
    """One node's wrong clock moves no other node's rows."""
    intake = Intake()
    frame = merge(
        [gpu(NOW), gpu(NOW + TEN_YEARS, NOW + TEN_YEARS, sent=NOW + TEN_YEARS, source="wrong"), gpu(NOW, seq=1)]
    )
    taken = intake.take(record(frame))
    assert taken.frame is not None
    assert taken.frame.times().tolist() == pytest.approx([NOW] * 4, abs=1e-5)
    assert list(intake.clock_offsets) == ["wrong"]


def test_the_way_and_the_wait_are_no_wrong_clock() -> None:
    """Within the tolerance nothing is taken off."""
    intake = Intake()
    taken = intake.take(record(gpu(NOW - 4.0, sent=NOW - CLOCK_TOLERANCE_SECONDS)))
    assert taken.frame is not None
    assert taken.frame.times().tolist() == [NOW - 4.0]
    assert intake.clock_offsets == {}


def test_a_clock_that_was_set_right_is_no_longer_named() -> None:
    """The offset is forgotten with the first frame that fits."""
    intake = Intake()
    intake.take(record(gpu(NOW + 3600, sent=NOW + 3600)))
    intake.take(record(gpu(NOW, seq=1)))
    assert intake.clock_offsets == {}


def test_rows_out_of_their_window_are_refused_and_the_others_kept() -> None:
    """The runs shrink with their rows, and the message says what was allowed and what was found."""
    intake = Intake()
    late, early = NOW - LATE_SECONDS_MAX - 1, NOW + FUTURE_SECONDS_MAX + 1
    frame = merge([gpu(late, NOW, NOW), gpu(early, seq=1), gpu(seq=2), gpu(NOW, source="node-2")])
    taken = intake.take(record(frame))
    assert taken.frame is not None
    assert [(run.source, run.seq, run.rows) for run in taken.frame.manifest] == [
        ("node-1", 0, 2),
        ("node-1", 1, 0),
        ("node-1", 2, 0),
        ("node-2", 0, 1),
    ]
    assert taken.frame.strings("node") == ["node-1", "node-1", "node-2"]
    assert taken.frame.times().tolist() == [NOW] * 3
    assert encode(taken.frame)
    (refusal,) = taken.refusals
    assert refusal.reason is FrameFault.OUT_OF_WINDOW
    for part in ("2 of 5 rows", "-901.0 s", "-900 s to +10 s"):
        assert part in refusal.message
    assert intake.refused[FrameFault.OUT_OF_WINDOW] == 1


@pytest.mark.parametrize("edge", [NOW - LATE_SECONDS_MAX, NOW + FUTURE_SECONDS_MAX], ids=["oldest", "newest"])
def test_the_edges_of_the_window_are_in_it(edge: float) -> None:
    """The bound itself is allowed."""
    assert Intake().take(record(gpu(edge))).refusals == ()


def test_a_frame_of_which_every_row_is_out_of_its_window_leaves_only_the_refusal() -> None:
    """It is refused, and its seq has arrived: it is not outstanding."""
    intake = Intake()
    taken = intake.take(record(gpu(NOW - TEN_YEARS)))
    assert taken.frame is None
    assert len(taken.refusals) == 1
    intake.take(record(gpu(NOW, seq=1)))
    assert intake.ledger.outstanding == 0


def test_a_frame_that_comes_twice_is_handed_on_once() -> None:
    """Alone or merged with others: only the fresh runs come through."""
    intake = Intake()
    assert intake.take(record(gpu(NOW))).frame is not None
    again = intake.take(record(gpu(NOW)))
    assert again.frame is None
    assert again.refusals == ()
    mixed = intake.take(record(merge([gpu(NOW), gpu(NOW, NOW, seq=1)])))
    assert mixed.frame is not None
    assert [run.seq for run in mixed.frame.manifest] == [1]
    assert mixed.frame.rows == 2
    assert intake.ledger.duplicate_total == 2


def test_a_backlog_may_be_two_days_old_and_has_its_clock_too() -> None:
    """What an outage held back is taken however long that was; a clock that is wrong is no excuse for the future."""
    intake, wrong = Intake(), NOW + TEN_YEARS
    taken = intake.take(record(gpu(wrong - BACKLOG_SECONDS_MAX, sent=wrong), Topic.BACKLOG))
    assert taken.refusals == ()
    assert taken.frame is not None
    assert taken.frame.times().tolist() == pytest.approx([NOW - BACKLOG_SECONDS_MAX], abs=1e-5)
    for seq, time in enumerate((NOW - BACKLOG_SECONDS_MAX - 1, NOW + FUTURE_SECONDS_MAX + 1), start=1):
        (refusal,) = intake.take(record(gpu(time, seq=seq), Topic.BACKLOG)).refusals
        assert refusal.reason is FrameFault.OUT_OF_WINDOW


def test_a_region_was_seen_when_its_newest_live_frame_came() -> None:
    """What an outage held back is no sign of life; who says no region is in none."""
    intake = Intake()

    def of(region: str | None, seq: int, source: str = "n") -> Frame:
        columns = {"time": [NOW], "region": [region], "node": [source], "gpu": [0], "simulated": [False]}
        return Frame("gpu/1", batch_of("gpu/1", columns), (Run(source, BOOT, seq, 1, NOW),))

    intake.take(record(merge([of("east", 0), of("west", 0, "w"), of(None, 0, "nowhere")])))
    intake.take(record(of("east", 1), time=NOW + 5))
    intake.take(record(of("west", 1, "w"), Topic.BACKLOG, time=NOW + 9))
    assert intake.regions == {"east": NOW + 5, "west": NOW}
    assert dict(intake.ledger.regions) == {"n": "east", "w": "west"}


@pytest.mark.parametrize("topic", [Topic.TICKS, Topic.FINDINGS], ids=str)
def test_times_of_findings_and_ticks_are_left_alone(topic: Topic) -> None:
    """They are the bus's own: neither window nor offset is theirs."""
    old = NOW - TEN_YEARS
    frames = {
        Topic.TICKS: FrameMaker("bus").make("tick/1", {"time": [old]}, old),
        Topic.FINDINGS: FrameMaker("detect").make(
            "finding/1",
            {
                "time": [old],
                **{name: ["x"] for name in ("id", "detector", "kind", "state", "severity", "title")},
                "simulated": [False],
            },
            old,
        ),
    }
    intake = Intake()
    taken = intake.take(record(frames[topic], topic))
    assert taken.frame is not None
    assert taken.frame.times().tolist() == [old]
    assert intake.clock_offsets == {}


def test_a_frame_that_fills_a_hole_from_the_backlog_is_fresh_once() -> None:
    """Live and backlog share one ledger."""
    intake = Intake()
    for seq in (0, 2):
        intake.take(record(gpu(NOW, seq=seq)))
    assert intake.ledger.outstanding == 1
    assert intake.take(record(gpu(NOW, seq=1), Topic.BACKLOG)).frame is not None
    assert intake.take(record(gpu(NOW, seq=1), Topic.BACKLOG)).frame is None
    assert intake.ledger.outstanding == 0


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", FrameFault.TOO_SHORT),
        (b"x" * 100, FrameFault.NOT_A_FRAME),
        (encode(gpu(NOW))[:-1], FrameFault.CHECKSUM),
        (encode(FrameMaker("s").make("tick/1", {"time": [NOW]}, NOW)), FrameFault.WRONG_TOPIC),
    ],
    ids=["short", "noise", "cut", "other schema"],
)
def test_what_cannot_be_read_is_refused_with_its_reason_and_counted(payload: bytes, reason: FrameFault) -> None:
    """The refusal carries the record, for the dead-letter topic; the next record is taken as if nothing had been."""
    intake = Intake()
    bad = record(payload)
    taken = intake.take(bad)
    assert taken.frame is None
    assert [(refusal.record, refusal.reason) for refusal in taken.refusals] == [(bad, reason)]
    assert intake.refused == {**dict.fromkeys(FrameFault, 0), reason: 1}
    assert intake.take(record(gpu(NOW))).frame is not None


def test_every_reason_is_counted_from_zero() -> None:
    """A metric that appears only with the first refusal cannot be alerted on."""
    assert Intake().refused == dict.fromkeys(FrameFault, 0)


def test_clock_offsets_are_remembered_up_to_a_bound() -> None:
    """The oldest are forgotten first."""
    bound, at_once = 4096, 512
    intake = Intake(bound)
    rows = gpu(*[NOW + 60] * at_once).batch
    for begin in range(0, 2 * bound, at_once):
        runs = tuple(Run(str(begin + number), BOOT, 0, 1, NOW + 60 + begin) for number in range(at_once))
        intake.take(record(Frame("gpu/1", rows, runs), time=NOW + begin))
    assert bound - bound // 64 <= len(intake.clock_offsets) <= bound
    assert "0" not in intake.clock_offsets
    assert str(2 * bound - 1) in intake.clock_offsets


ANY_TIME = st.floats(-9.1e12, 9.1e12) | st.sampled_from([NOW, 0.0, -9.1e12, 9.1e12])


@given(st.lists(st.tuples(ANY_TIME, st.lists(ANY_TIME, max_size=3)), min_size=1, max_size=4), ANY_TIME)
def test_no_time_makes_the_intake_raise(runs: list[tuple[float, list[float]]], now: float) -> None:
    """Each row comes through within its window or is refused, whatever any clock says."""
    frame = merge([gpu(*times, sent=sent, seq=seq) for seq, (sent, times) in enumerate(runs)])
    taken = Intake().take(record(frame, time=now))
    if taken.frame is None:
        assert taken.refusals or not frame.rows
        return
    assert taken.frame.rows == sum(run.rows for run in taken.frame.manifest)
    assert bool(taken.refusals) == (taken.frame.rows < frame.rows)
    for time in taken.frame.times().tolist():
        assert math.isfinite(time)
        slack = 1e-6 + abs(now) * 1e-12 + max(abs(sent) for sent, _ in runs) * 1e-12
        assert -LATE_SECONDS_MAX - slack <= time - now <= FUTURE_SECONDS_MAX + slack


@given(st.lists(st.tuples(st.sampled_from(list(Topic)), st.binary(max_size=200)), max_size=5))
def test_no_bytes_make_the_intake_raise(payloads: list[tuple[Topic, bytes]]) -> None:
    """Each is refused, on every topic."""
    intake = Intake()
    for topic, payload in payloads:
        taken = intake.take(record(payload, topic))
        assert taken.frame is None
        assert len(taken.refusals) == 1
    assert sum(intake.refused.values()) == len(payloads)


@pytest.mark.parametrize("topic", [topic for topic in Topic if topic is not Topic.BACKLOG], ids=str)
def test_every_schema_has_one_live_topic(topic: Topic) -> None:
    """The backlog carries what has a live topic of its own."""
    for schema_id in TOPIC_SCHEMAS[topic]:
        assert topic_of(schema_id) is topic


def test_whose_rows_are_simulated_is_remembered_by_source() -> None:
    """One frame may hold rows of both kinds; a source that becomes real is real."""
    intake = Intake()

    def of(source: str, seq: int, simulated: bool) -> Frame:
        columns = {"time": [NOW], "node": ["n"], "gpu": [0], "simulated": [simulated]}
        return Frame("gpu/1", batch_of("gpu/1", columns), (Run(source, BOOT, seq, 1, NOW),))

    intake.take(record(merge([of("real/gpu", 0, False), of("sim/gpu", 0, True), of("also/gpu", 0, True)])))
    sources = ("real/gpu", "sim/gpu", "also/gpu", "unknown")
    assert [source in intake.simulated for source in sources] == [False, True, True, False]
    intake.take(record(of("also/gpu", 1, False)))
    assert [source in intake.simulated for source in sources] == [False, True, False, False]
