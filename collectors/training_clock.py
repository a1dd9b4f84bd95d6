"""The clock at the other end of one SDK connection: how far it is from ours, and when somebody has set it.

Differences are taken against our monotonic clock, so that setting our own wall clock is no event here. A clock that is
set stays inside one connection: what was stamped before is of the old clock, what comes after is of the new one.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from telemetry_bus.intake import CLOCK_TOLERANCE_SECONDS, LATE_SECONDS_MAX
from telemetry_bus.runtime.clock import Clock

DIFFERENCES_KEPT = 32
"""Messages over which a clock's difference is measured. A message can be late on its way and never early, so that the
greatest of the differences is the nearest to the truth."""


class SenderClock:
    """One connection's other clock, learnt from when its messages say they were sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._differences: deque[float] = deque(maxlen=DIFFERENCES_KEPT)
        self._last_sent = 0.0
        self._step = 0.0

    def received(self, sent: float, arrived: float, waited: float) -> float:
        """Learn from a message, in order of arrival; return by how many seconds the clock was set just now, mostly 0.0.

        ``arrived`` is our monotonic clock when it was read. ``waited`` is how long nothing was there to be read before
        it came: one that was waited for was not held up on our side.
        """
        difference = sent - arrived
        was_set = 0.0
        if self._differences:
            departure = difference - max(self._differences)
            # Late messages fall behind too, as when the bus was away: but they never go back, and they were not waited
            # for.
            behind = sent < self._last_sent or waited > CLOCK_TOLERANCE_SECONDS / 2
            if departure > CLOCK_TOLERANCE_SECONDS or (departure < -CLOCK_TOLERANCE_SECONDS and behind):
                was_set = self._step = departure
                # A new window, not an emptied one: messages under way are still measured by theirs.
                self._differences = deque(maxlen=DIFFERENCES_KEPT)
        self._differences.append(difference)
        self._last_sent = sent
        return was_set

    def reading(self) -> Callable[[], float]:
        """What says the sender's wall clock at any later moment, by the clock of the last message received."""
        differences, clock = self._differences, self._clock
        return lambda: clock.monotonic() + max(differences)

    def place(self, rows: list[dict[str, Any]], sent: float) -> None:
        """Put rows on the clock that ``sent`` is of, where their own ``time`` cannot be.

        A row that is later than its own sending, or older than a live row may be, and that fits once the last step is
        added, waited while the clock was set. One that is later and does not fit (the step fell between two
        connections) is put at its sending: a live row is not lost for a wrong clock.
        """
        oldest, newest = sent - LATE_SECONDS_MAX, sent + CLOCK_TOLERANCE_SECONDS
        for row in rows:
            time = row["time"]
            if oldest <= time <= newest:
                continue
            if oldest <= time + self._step <= newest:
                row["time"] = time + self._step
            elif time > newest:
                row["time"] = sent
