"""Missing numbers as ranges: an outage of four hours is one range, not fourteen thousand numbers. Pure."""

from bisect import bisect_right
from collections.abc import Iterator

RANGES_MAX = 1_024
"""Of one source: an outage is one range, and a gateway that dies one or two; a thousand is a network that drops every
other frame. Beyond it the oldest range is given up."""


class Ranges:
    """Disjoint ranges of integers, each with the time (UTC seconds) since which it has been there."""

    __slots__ = ("_begins", "_count", "_ends", "_since")

    def __init__(self) -> None:
        self._count = 0
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._since: list[float] = []

    def __contains__(self, number: int) -> bool:
        return self._place(number) is not None

    def __iter__(self) -> Iterator[int]:
        return (number for pair in zip(self._begins, self._ends, strict=True) for number in range(*pair))

    def __len__(self) -> int:
        """How many numbers there are."""
        return self._count

    @property
    def oldest(self) -> float:
        """Since when the oldest range has been there; only of what is not empty."""
        return min(self._since)

    def append(self, begin: int, end: int, since: float) -> int:
        """Add ``begin`` to ``end`` (exclusive), behind all others; how many numbers were given up for it."""
        if begin >= end:
            return 0
        if self._ends and self._ends[-1] == begin and self._since[-1] == since:
            self._ends[-1] = end
        else:
            self._begins.append(begin)
            self._ends.append(end)
            self._since.append(since)
        self._count += end - begin
        return self._bounded()

    def discard(self, number: int) -> bool:
        """Take ``number`` out; whether it was there."""
        at = self._place(number)
        if at is None:
            return False
        begin, end = self._begins[at], self._ends[at]
        self._count -= 1
        if end - begin == 1:
            self._cut(at)
        elif number == begin:
            self._begins[at] = begin + 1
        elif number == end - 1:
            self._ends[at] = number
        else:
            self._ends[at] = number
            self._begins.insert(at + 1, number + 1)
            self._ends.insert(at + 1, end)
            self._since.insert(at + 1, self._since[at])
        return True

    def expire(self, before: float) -> int:
        """Give up what has been there since ``before`` or earlier; how many numbers that were."""
        gone = 0
        for at in range(len(self._since) - 1, -1, -1):
            if self._since[at] <= before:
                gone += self._ends[at] - self._begins[at]
                self._cut(at)
        self._count -= gone
        return gone

    def not_after(self, now: float) -> None:
        """The clock was set back to ``now``: what has been there since later has been there since now."""
        self._since = [min(since, now) for since in self._since]

    def shorten(self, most: int) -> int:
        """Give up the lowest numbers beyond ``most``; how many that were."""
        over = max(0, self._count - most)
        left = over
        while left:
            size = self._ends[0] - self._begins[0]
            if size <= left:
                self._cut(0)
                left -= size
            else:
                self._begins[0] += left
                left = 0
        self._count -= over
        return over

    def _place(self, number: int) -> int | None:
        at = bisect_right(self._begins, number) - 1
        return at if at >= 0 and number < self._ends[at] else None

    def _bounded(self) -> int:
        gone = 0
        while len(self._begins) > RANGES_MAX:
            gone += self._ends[0] - self._begins[0]
            self._cut(0)
        self._count -= gone
        return gone

    def _cut(self, at: int) -> None:
        del self._begins[at], self._ends[at], self._since[at]
