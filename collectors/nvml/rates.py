"""From two readings of a counter to a rate, over wrap-around and reset. Pure.

A counter that goes back was either set back (a driver reload, a GPU reset) or has wrapped. Which of the two cannot be
told from the numbers alone where it has 32 bits: four gigabytes are less than what a link carries in a second. So a
wrap is believed only where the rate it gives goes with the one before. What is not believed is no rate, once.
"""

COUNTER_BITS = (32, 64)
"""The sizes of the counters behind NVML's, which itself always gives 64 bits."""
WRAP_FACTOR_MAX = 4.0
"""A wrap is believed up to four times the rate before: traffic of a training step swings by less from second to second,
and a wrong guess cannot make more of a spike than that."""
GAP_SECONDS_MAX = 60.0
"""Over a longer gap, as after a pause, the mean is not what a row at one instant should show."""


class CounterRate:
    """The rate of one counter, in counts a second. ``maximum`` is what the link can do."""

    def __init__(self, maximum: float) -> None:
        self._maximum = maximum
        self._count: int | None = None
        self._at = 0.0
        self._rate: float | None = None

    def observe(self, count: int, now: float) -> float | None:
        """The rate since the reading before, ``None`` where it is not known. ``now`` is monotonic."""
        before, seconds = self._count, now - self._at
        if before is not None and seconds <= 0:
            return self._rate
        self._count, self._at = count, now
        if before is None or seconds > GAP_SECONDS_MAX:
            self._rate = None
        elif count >= before:
            self._rate = _within((count - before) / seconds, self._maximum)
        else:
            self._rate = self._wrapped(before, count, seconds)
        return self._rate

    def _wrapped(self, before: int, count: int, seconds: float) -> float | None:
        if self._rate is None:
            return None
        highest = min(self._maximum, WRAP_FACTOR_MAX * self._rate)
        rates = [
            _within((count - before + (1 << bits)) / seconds, highest) for bits in COUNTER_BITS if before >> bits == 0
        ]
        return next((rate for rate in rates if rate is not None), None)


def _within(rate: float, highest: float) -> float | None:
    return rate if rate <= highest else None
