"""The ledger: loss and repetition are measured, never assumed."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import Run, SourceLedger
from telemetry_bus.ledger import EARLY_MAX, HOLES_MAX, LOST_AFTER_SECONDS, SOURCES_MAX

NOW = 1_700_000_000.0
BOOT = uuid.UUID(int=7)


def run(seq: int, source: str = "node-1", boot: uuid.UUID = BOOT) -> Run:
    """The run of one frame."""
    return Run(source, boot, seq, 1, NOW)


def totals(ledger: SourceLedger) -> tuple[int, int, int, int]:
    """Frames, duplicates, outstanding, lost."""
    return ledger.frames_total, ledger.duplicate_total, ledger.outstanding, ledger.lost_total


def test_frames_in_order_miss_nothing() -> None:
    """Each is fresh."""
    ledger = SourceLedger()
    assert all(ledger.fresh(run(seq), NOW) for seq in range(10))
    assert totals(ledger) == (10, 0, 0, 0)


def test_a_hole_is_outstanding_until_a_backlog_fills_it() -> None:
    """What is filled was never lost, and fills only once."""
    ledger = SourceLedger()
    for seq in (0, 1, 5):
        ledger.fresh(run(seq), NOW)
    assert totals(ledger) == (3, 0, 3, 0)
    assert [ledger.fresh(run(seq), NOW + 60) for seq in (3, 2, 4, 3)] == [True, True, True, False]
    assert totals(ledger) == (6, 1, 0, 0)


def test_frames_that_the_reader_skipped_are_not_missing_and_are_taken_if_they_come() -> None:
    """A reader that was moved forward knows no loss in what it left out; a hole that opens later is one again."""
    ledger = SourceLedger()
    for seq in (0, 1):
        ledger.fresh(run(seq), NOW)
    ledger.skipped_before(NOW + 5)
    assert ledger.fresh(run(9), NOW + 6)
    assert totals(ledger) == (3, 0, 0, 0)
    assert [ledger.fresh(run(seq), NOW + 7) for seq in (4, 4, 12)] == [True, False, True]
    assert totals(ledger) == (5, 1, 2, 0)


def test_a_frame_that_was_here_is_a_duplicate() -> None:
    """At once or later, it is not taken twice."""
    ledger = SourceLedger()
    assert [ledger.fresh(run(seq), NOW) for seq in (0, 0, 1, 0, 1)] == [True, False, True, False, False]
    assert totals(ledger) == (2, 3, 0, 0)


def test_frames_from_before_the_first_that_was_seen_are_taken_once_and_were_not_missing() -> None:
    """A reader that begins in the middle does not call the past lost; a backlog may still bring it."""
    ledger = SourceLedger()
    assert ledger.fresh(run(100), NOW)
    assert totals(ledger) == (1, 0, 0, 0)
    assert [ledger.fresh(run(seq), NOW) for seq in (7, 99, 7)] == [True, True, False]
    assert totals(ledger) == (3, 1, 0, 0)


def test_another_boot_or_source_counts_for_itself() -> None:
    """seq begins again with every start of a process."""
    ledger = SourceLedger()
    for seq in range(3):
        ledger.fresh(run(seq), NOW)
    assert ledger.fresh(run(0, boot=uuid.UUID(int=8)), NOW)
    assert ledger.fresh(run(0, source="node-2"), NOW)
    assert totals(ledger) == (5, 0, 0, 0)
    assert [(count.source, count.frames) for count in ledger] == [("node-1", 3), ("node-1", 1), ("node-2", 1)]


def test_what_stays_outstanding_is_lost_in_the_end() -> None:
    """Not before its time, each hole by its own, and finally: the totals do not change again."""
    ledger = SourceLedger()
    for seq, late in ((0, 0.0), (2, 0.0), (4, 100.0)):
        ledger.fresh(run(seq), NOW + late)
    ledger.expire(NOW + LOST_AFTER_SECONDS - 1)
    assert totals(ledger) == (3, 0, 2, 0)
    ledger.expire(NOW + LOST_AFTER_SECONDS)
    assert totals(ledger) == (3, 0, 1, 1)
    ledger.expire(NOW + LOST_AFTER_SECONDS + 100)
    assert totals(ledger) == (3, 0, 0, 2)
    ledger.expire(NOW + 10 * LOST_AFTER_SECONDS)
    assert totals(ledger) == (3, 0, 0, 2)


def test_a_silent_source_is_forgotten_and_its_totals_stay() -> None:
    """Memory is freed; what was counted is counted."""
    ledger = SourceLedger()
    ledger.fresh(run(0), NOW)
    ledger.fresh(run(0), NOW)
    ledger.expire(NOW + LOST_AFTER_SECONDS)
    assert list(ledger) == []
    assert totals(ledger) == (1, 1, 0, 0)


def test_a_hole_larger_than_can_be_remembered_is_lost_at_once() -> None:
    """The oldest of it: the newest HOLES_MAX may still be filled."""
    ledger = SourceLedger()
    ledger.fresh(run(0), NOW)
    ledger.fresh(run(HOLES_MAX + 11), NOW)
    assert totals(ledger) == (2, 0, HOLES_MAX, 10)
    assert ledger.fresh(run(11), NOW)
    assert totals(ledger) == (3, 0, HOLES_MAX - 1, 10)


def test_a_seq_out_of_all_proportion_costs_no_memory() -> None:
    """The largest seq that a frame may carry is counted, and nothing is allocated for what is before it."""
    ledger = SourceLedger()
    ledger.fresh(run(0), NOW)
    ledger.fresh(run(2**63 - 2), NOW)
    assert totals(ledger) == (2, 0, HOLES_MAX, 2**63 - 3 - HOLES_MAX)
    assert len(next(iter(ledger)).holes) == HOLES_MAX


def test_early_frames_are_remembered_up_to_a_bound() -> None:
    """Beyond it a repetition can no longer be told."""
    ledger = SourceLedger()
    ledger.fresh(run(10_000), NOW)
    assert all(ledger.fresh(run(seq), NOW) for seq in range(EARLY_MAX + 1))
    assert len(next(iter(ledger)).early) == EARLY_MAX
    assert not ledger.fresh(run(0), NOW)


def test_the_source_that_was_silent_longest_is_forgotten_first() -> None:
    """The number of sources is bounded; what a forgotten one missed is lost, and that it is forgotten is counted."""
    bound = 640
    ledger = SourceLedger(bound)
    for seq, source, at in ((0, "holed", 0), (3, "holed", 0), (0, "old", 1), (1, "old", 2)):
        ledger.fresh(run(seq, source=source), NOW + at)
    for number in range(bound - 1):
        ledger.fresh(run(0, source=str(number)), NOW + 3 + number)
    left = sum(1 for _ in ledger)
    assert bound - bound // 64 <= left <= bound
    assert ("holed" in ledger.last_seen, "old" in ledger.last_seen) == (False, False)
    assert [str(number) in ledger.last_seen for number in (bound - 2, bound // 2)] == [True, True]
    assert (ledger.outstanding, ledger.lost_total, ledger.forgotten_total) == (0, 2, bound + 1 - left)


def test_every_stream_of_the_largest_fleet_has_its_place() -> None:
    """300,000 ranks of three streams and 37,500 nodes of three: of each of them loss and repetition are known."""
    assert SOURCES_MAX >= 2 * (300_000 * 3 + 37_500 * 3)


@given(
    st.integers(1, 40).flatmap(
        lambda count: st.tuples(st.permutations(range(count)), st.lists(st.integers(0, count - 1), max_size=40))
    ),
    st.randoms(use_true_random=False),
)
def test_in_whatever_order_and_however_often_frames_come_each_is_fresh_once(
    frames: tuple[list[int], list[int]], random: object
) -> None:
    """Once all have arrived nothing is outstanding and nothing is lost."""
    order, again = frames
    arriving = [*order, *again]
    random.shuffle(arriving)  # type: ignore[attr-defined]
    ledger = SourceLedger()
    fresh: Counter[int] = Counter()
    for at, seq in enumerate(arriving):
        fresh[seq] += ledger.fresh(run(seq), NOW + at)
    assert fresh == Counter(order)
    assert totals(ledger) == (len(order), len(again), 0, 0)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30), st.integers(0, 7)), max_size=60))
def test_outstanding_is_always_what_the_sources_miss(arrivals: list[tuple[str, int, int]]) -> None:
    """Whatever comes and whenever it is called lost, the sum over all sources is the total."""
    ledger = SourceLedger()
    now = NOW
    for source, seq, hours in arrivals:
        now += hours * 3600.0
        ledger.fresh(run(seq, source=source), now)
        if hours:
            ledger.expire(now)
        assert ledger.outstanding == sum(len(count.holes) for count in ledger)
        assert ledger.outstanding >= 0
    assert ledger.frames_total + ledger.duplicate_total == len(arrivals)


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["back", "forwards"])
def test_a_step_of_the_bus_clock_loses_no_count(step: float) -> None:
    """Time that jumps makes nothing negative."""
    ledger = SourceLedger()
    for seq in (0, 2):
        ledger.fresh(run(seq), NOW)
    ledger.fresh(run(5), NOW + step)
    ledger.expire(NOW + step)
    assert totals(ledger) == (3, 0, 3, 0)


def test_the_newest_frame_of_a_source_is_known_over_all_of_its_boots() -> None:
    """`last_seen` follows the source, and goes with the last boot of it that is remembered."""
    ledger, later = SourceLedger(), uuid.UUID(int=8)
    ledger.fresh(run(0), NOW)
    ledger.fresh(run(0, boot=later), NOW + 100)
    assert ledger.last_seen == {"node-1": NOW + 100}
    ledger.expire(NOW + LOST_AFTER_SECONDS)
    assert (len(list(ledger)), dict(ledger.last_seen)) == (1, {"node-1": NOW + 100})
    ledger.expire(NOW + 100 + LOST_AFTER_SECONDS)
    assert (len(list(ledger)), dict(ledger.last_seen)) == (0, {})


def test_only_boots_that_miss_frames_are_walked_for_holes() -> None:
    """What is whole again is left out."""
    ledger = SourceLedger()
    for seq, source in ((0, "whole"), (0, "holed"), (2, "holed")):
        ledger.fresh(run(seq, source=source), NOW)
    assert [count.source for count in ledger.holed()] == ["holed"]
    ledger.fresh(run(1, source="holed"), NOW)
    assert list(ledger.holed()) == []


@pytest.mark.parametrize("told", [True, False], ids=["told", "by its next frame"])
def test_nothing_was_seen_later_than_a_clock_that_was_set_back_shows(told: bool) -> None:
    """A time of hours ahead would hide silence for hours."""
    ledger, now = SourceLedger(), NOW - 7200.0
    for seq in (0, 2):
        ledger.fresh(run(seq), NOW)
    if told:
        ledger.set_back(now)
    else:
        ledger.fresh(run(3), now)
    assert ledger.last_seen == {"node-1": now}
    ledger.set_back(now)
    ledger.expire(now + LOST_AFTER_SECONDS)
    assert (ledger.lost_total, ledger.outstanding) == (1, 0)
