"""Ranges: missing numbers, bounded however many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus.ranges import RANGES_MAX, Ranges


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=12),
    st.lists(st.integers(0, 130), max_size=40),
)
def test_ranges_are_the_set_of_their_numbers(gaps: list[tuple[int, int]], taken: list[int]) -> None:
    """Whatever is added behind and taken out anywhere, they hold what a set would."""
    ranges, numbers, at = Ranges(), set[int](), 0
    for skipped, length in gaps:
        at += skipped
        assert ranges.append(at, at + length, float(at)) == 0
        numbers.update(range(at, at + length))
        at += length
    for number in taken:
        assert ranges.discard(number) == (number in numbers)
        numbers.discard(number)
        assert (len(ranges), list(ranges)) == (len(numbers), sorted(numbers))
        assert all((number in ranges) == (number in numbers) for number in range(at + 2))


def test_each_range_is_given_up_by_its_own_time() -> None:
    """A clock that is set back keeps none for longer than it has been there."""
    ranges = Ranges()
    for begin, since in ((0, 10.0), (20, 30.0), (40, 99.0)):
        ranges.append(begin, begin + 5, since)
    assert (ranges.oldest, ranges.expire(30.0), list(ranges)) == (10.0, 10, list(range(40, 45)))
    ranges.not_after(50.0)
    assert (ranges.oldest, ranges.expire(50.0), len(ranges)) == (50.0, 5, 0)


def test_beyond_the_bound_the_oldest_range_is_given_up() -> None:
    """And said so: nothing is forgotten silently."""
    ranges = Ranges()
    given_up = [ranges.append(10 * number, 10 * number + 2, 0.0) for number in range(RANGES_MAX + 3)]
    assert (sum(given_up), len(ranges)) == (6, 2 * RANGES_MAX)


def test_a_range_is_shortened_from_its_lowest_number() -> None:
    """The newest are the ones that may still come."""
    ranges = Ranges()
    ranges.append(0, 4, 0.0)
    ranges.append(10, 2**62, 0.0)
    assert ranges.shorten(3) == 4 + 2**62 - 10 - 3
    assert list(ranges) == [2**62 - 3, 2**62 - 2, 2**62 - 1]
