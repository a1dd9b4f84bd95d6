"""Records of several partitions in the order of the bus's time: what is held back, for whom, and how long."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import Record, Topic
from telemetry_bus.kafka.order import BATCH_BYTES, Lane, TimeOrder

LEFT, RIGHT, THIRD = (Topic.GPU, 0), (Topic.GPU, 1), (Topic.TICKS, 0)


def record(lane: Lane, offset: int, time: float, size: int = 1) -> Record:
    """A record of a lane."""
    return Record(*lane, offset, time, bytes(size))


def order(*lanes: Lane, **bounds: float) -> TimeOrder:
    """An order of lanes that begin at offset 0."""
    return TimeOrder(dict.fromkeys(lanes, 0), **bounds)  # type: ignore[arg-type]


def put(made: TimeOrder, lane: Lane, times: Sequence[float], *, first: int = 0, size: int = 1) -> None:
    """Fetch a record for each of the times."""
    for offset, time in enumerate(times, first):
        made.put(record(lane, offset, time, size))


def times(records: Sequence[Record]) -> list[float]:
    """When they were appended."""
    return [one.time for one in records]


def test_what_is_later_waits_for_a_lane_that_has_not_come_so_far() -> None:
    """A tick does not overtake the rows of an earlier second in another partition."""
    made = order(LEFT, RIGHT)
    put(made, LEFT, [1.0, 2.0, 3.0])
    assert made.take() == [], "nothing is known of the other lane yet"
    put(made, RIGHT, [1.5, 2.5])
    assert times(made.take()) == [1.0, 1.5, 2.0, 2.5]
    put(made, RIGHT, [4.0], first=2)
    assert times(made.take()) == [3.0], "now the left lane is the one that is waited for"


def test_a_lane_at_its_end_holds_nobody_back() -> None:
    """Live, nothing waits."""
    made = order(LEFT, RIGHT)
    made.reached(RIGHT, 0)
    put(made, LEFT, [1.0])
    assert times(made.take()) == [1.0]
    put(made, LEFT, [2.0], first=1)
    assert times(made.take()) == [2.0]


def test_a_lane_is_at_its_end_when_all_before_the_end_has_been_fetched() -> None:
    """An end that is further on says that there is more to come."""
    made = order(LEFT, RIGHT)
    put(made, RIGHT, [1.0])
    made.reached(RIGHT, 2)
    put(made, LEFT, [5.0])
    assert times(made.take()) == [1.0]
    made.reached(RIGHT, 1)
    assert times(made.take()) == [5.0]


def test_an_end_beyond_deleted_records_is_an_end() -> None:
    """The broker says that the lane ends there, and there is nothing left before it."""
    made = order(LEFT, RIGHT)
    put(made, LEFT, [1.0])
    made.reached(RIGHT, 7, fetched=True)
    assert times(made.take()) == [1.0]
    assert made.passed(RIGHT) == 7


def test_a_lane_that_brings_nothing_for_too_long_is_not_waited_for_until_it_does() -> None:
    """A partition without a leader does not blind the detectors; when it is back it is in the order again."""
    made = order(LEFT, RIGHT, hold_seconds=5.0)
    put(made, LEFT, [1.0, 2.0, 9.0])
    made.waited(4.9, [LEFT])
    assert made.take() == []
    made.waited(0.2, [LEFT])
    assert times(made.take(records_max=1)) == [1.0]
    put(made, RIGHT, [1.5])
    assert times(made.take()) == [1.5]
    made.waited(0.2, [])
    assert made.take() == [], "it is waited for again"


def test_only_time_spent_waiting_counts() -> None:
    """A reader that was busy for a minute has not waited for anybody."""
    made = order(LEFT, RIGHT, hold_seconds=5.0)
    put(made, LEFT, [1.0])
    for _ in range(100):
        made.waited(0.0, [LEFT])
    assert made.take() == []


def test_a_lane_that_is_far_ahead_is_paused_and_later_resumed() -> None:
    """What is held is bounded; who is waited for is never paused."""
    made = order(LEFT, RIGHT, held_bytes_max=200)
    put(made, LEFT, [1.0, 2.0, 3.0], size=60)
    assert list(made.to_pause()) == [], "there is room in all"
    put(made, LEFT, [4.0], first=3, size=60)
    assert list(made.to_pause()) == [LEFT]
    assert list(made.to_pause()) == [], "it is paused already"
    made.waited(60.0, [])
    put(made, RIGHT, [2.5])
    assert times(made.take()) == [1.0, 2.0, 2.5]
    assert list(made.to_resume()) == [], "more than half of its share waits"
    put(made, RIGHT, [4.5], first=1)
    assert times(made.take()) == [3.0, 4.0]
    assert list(made.to_resume()) == [LEFT]


def test_a_lane_keeps_its_own_order_when_the_brokers_clock_steps_back() -> None:
    """Offsets decide within a partition."""
    made = order(LEFT, RIGHT)
    made.reached(RIGHT, 0)
    put(made, LEFT, [5.0, 3.0, 4.0])
    assert [one.offset for one in made.take()] == [0, 1, 2]


def test_a_batch_is_bounded() -> None:
    """In records and in bytes; one record may be larger."""
    made = order(LEFT)
    put(made, LEFT, [1.0] * 10, size=BATCH_BYTES // 4)
    assert len(made.take()) == 4
    assert len(made.take(records_max=5)) == 4
    put(made, LEFT, [1.0], first=10, size=2 * BATCH_BYTES)
    assert len(made.take()) == 3


def test_passed_is_behind_what_has_gone_out() -> None:
    """What is held back has not gone out."""
    made = order(LEFT, RIGHT)
    put(made, LEFT, [1.0, 2.0])
    assert made.passed(LEFT) == 0
    put(made, RIGHT, [1.5])
    made.take()
    assert (made.passed(LEFT), made.passed(RIGHT)) == (1, 1)


@given(st.lists(st.tuples(st.sampled_from([LEFT, RIGHT, THIRD]), st.integers(1, 5)), max_size=60), st.randoms())
def test_whatever_comes_in_goes_out_once_in_the_order_of_time(log: list[tuple[Lane, int]], random: object) -> None:
    """Lanes are fetched at any speed: the reader gets the order in which the bus appended."""
    appended: list[Record] = []
    offsets = dict.fromkeys([LEFT, RIGHT, THIRD], 0)
    for moment, (lane, _) in enumerate(log):
        appended.append(record(lane, offsets[lane], float(moment)))
        offsets[lane] += 1
    made = TimeOrder(dict.fromkeys(offsets, 0))
    for lane, end in offsets.items():
        made.reached(lane, end)
    waiting = {lane: [one for one in appended if (one.topic, one.partition) == lane] for lane in offsets}
    out: list[Record] = []
    while any(waiting.values()):
        lane = random.choice([lane for lane, left in waiting.items() if left])  # type: ignore[attr-defined]
        for _ in range(random.randint(1, 3)):  # type: ignore[attr-defined]
            if waiting[lane]:
                made.put(waiting[lane].pop(0))
        made.reached(lane, offsets[lane])
        out += made.take()
    assert out == appended
