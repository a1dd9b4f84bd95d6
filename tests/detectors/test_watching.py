"""Nantucket watches itself: each of these lives on ticks and what the reader knows."""

from dataclasses import replace

import pytest

from detectors import ClockOffset, Holes, Lag, MissingFrames, ReaderHealth, RefusedFrames, SilentSource
from telemetry_bus.schemas import FindingState, Severity
from telemetry_bus.topics import Topic
from tests.detectors.rows import NAN, START, ticks


def test_a_collector_that_falls_silent_is_named_with_its_node() -> None:
    """After fifteen seconds, once; and it is over with its next frame."""
    detector = SilentSource().build()
    health = ReaderHealth(last_seen={"n1/gpu": START, "n2/gpu": START + 100, "job/1/0/train": START})
    (found,) = ticks(detector, 1, 60, health)
    assert (found.node, found.title, found.time) == ("n1", "n1/gpu has sent nothing for 16 s", START + 16)
    (over,) = ticks(detector, 61, 61, replace(health, last_seen={"n1/gpu": START + 61, "n2/gpu": START + 61}))
    assert over.state is FindingState.RESOLVED


def test_a_rack_that_falls_silent_at_once_is_one_finding() -> None:
    """Forty nodes behind one switch are one trouble."""
    health = ReaderHealth(last_seen={f"n{number}/gpu": START for number in range(40)})
    (found,) = ticks(SilentSource().build(), 0, 60, health)
    assert found.evidence["count"] == 40
    assert found.node is None


def test_silence_while_nobody_watched_is_not_said() -> None:
    """After a gap in the ticks, sources have the whole limit again."""
    health = ReaderHealth(last_seen={"n1/gpu": START}, watching_since=START + 100)
    assert ticks(SilentSource().build(), 100, 114, health) == []
    assert len(ticks(SilentSource().build(), 115, 117, health)) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, []), (NAN, []), (6.0, [Severity.WARNING]), (31.0, [Severity.WARNING, Severity.CRITICAL])],
)
def test_lag_that_lasts_is_said(seconds: float, said: list[Severity]) -> None:
    """Five seconds are a ticket, thirty are a page."""
    found = ticks(Lag().build(), 0, 20, ReaderHealth(lag_seconds={Topic.TRAIN: seconds}))
    assert [item.severity for item in found] == said


def test_a_lag_of_a_moment_is_not_said() -> None:
    """A burst is read in a few seconds."""
    detector = Lag().build()
    late, well = ReaderHealth(lag_seconds={Topic.GPU: 50.0}), ReaderHealth(lag_seconds={Topic.GPU: 0.1})
    assert ticks(detector, 0, 8, late) + ticks(detector, 9, 9, well) + ticks(detector, 10, 18, late) == []


def test_frames_that_are_missed_for_long_are_said_and_come_back() -> None:
    """A gap of a moment is the network's; one of half a minute is somebody's."""
    detector = MissingFrames().build()
    gap = ReaderHealth(holes={"n1/gpu": Holes(3, START)})
    (found,) = ticks(detector, 0, 40, gap)
    assert (found.time, found.evidence["outstanding"], found.node) == (START + 30, 3, "n1")
    assert [item.state for item in ticks(detector, 41, 41)] == [FindingState.RESOLVED]


def test_frames_that_are_lost_are_said_with_their_number() -> None:
    """Loss is measured, and final."""
    detector = MissingFrames().build()
    ticks(detector, 0, 3, ReaderHealth(lost=0))
    (found,) = ticks(detector, 4, 9, ReaderHealth(lost=7))
    assert found.evidence["lost"] == 7


def test_a_clock_ten_years_off_is_said_with_its_offset() -> None:
    """Its rows are used all the same; somebody has to set it."""
    (found,) = ticks(ClockOffset().build(), 0, 30, ReaderHealth(clock_offsets={"n1/gpu": -3.2e8}))
    assert found.title == "the clock of n1/gpu is 3.2e+08 s behind the bus's"
    assert found.evidence["offset_seconds"] == -3.2e8


def test_refused_frames_are_said_by_reason() -> None:
    """Zero is no news; a first refusal is."""
    detector = RefusedFrames().build()
    assert ticks(detector, 0, 5, ReaderHealth(refused={"checksum": 0})) == []
    (found,) = ticks(detector, 6, 20, ReaderHealth(refused={"checksum": 2}))
    assert found.title == "2 frames were refused: checksum"
    assert [item.state for item in ticks(detector, 21, 400, ReaderHealth(refused={"checksum": 2}))] == [
        FindingState.RESOLVED
    ]
