"""The only place where time is fetched.

Services are given a :class:`Clock`; pure code takes ``now``. Two kinds of time must not be mixed: ``now()`` is the wall
clock (UTC seconds since 1970, may step), ``monotonic()`` measures durations and deadlines and never steps.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Wall clock, UTC seconds since 1970. It may step, forwards or backwards."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start. It never goes back: use it for durations."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Wall clock, UTC seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; the same start for every process of one Linux machine."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved: tests and simulations run on it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Wall clock, UTC seconds since 1970."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` (not negative) pass on both clocks."""
        if seconds < 0:
            raise ValueError(
                f"time passes forwards: expected seconds >= 0, found {seconds}; use step() for the wall clock"
            )
        self._now += seconds
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as an administrator or NTP does; no duration passes."""
        self._now += seconds
