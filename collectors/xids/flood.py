"""A bound on how often one thing is told: the first of a flood, and how many more there were."""

ROWS_MAX = 20
WINDOW_SECONDS = 10.0
"""A GPU that is failing writes the same line thousands of times in a second. The first twenty say what there is to say;
the others are counted."""


class Flood:
    """Counts one kind of event. ``now`` is its time, UTC seconds; it may go back, as it does after a clock step."""

    __slots__ = ("_began", "_passed", "_suppressed")

    def __init__(self) -> None:
        self._began = 0.0
        self._passed = 0
        self._suppressed = 0

    def lets_through(self, now: float) -> bool:
        """Whether this one is told."""
        if not 0.0 <= now - self._began < WINDOW_SECONDS:
            self._began, self._passed = now, 0
        if self._passed >= ROWS_MAX:
            self._suppressed += 1
            return False
        self._passed += 1
        return True

    def taken(self) -> int:
        """How many were not told since it was asked last."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed

    def ended(self, now: float) -> int:
        """As :meth:`taken`, once the window of the flood is over; until then 0."""
        return self.taken() if self._suppressed and not 0.0 <= now - self._began < WINDOW_SECONDS else 0
