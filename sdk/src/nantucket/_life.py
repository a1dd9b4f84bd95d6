"""What the training thread is doing, as far as its calls tell: its step, its phase, when it was last heard of.

The training thread writes, the sender's thread reads; no lock is needed for single attributes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

from nantucket import _clock
from nantucket._values import COLUMNS

T = TypeVar("T")
PAUSES = frozenset({"checkpoint", "eval", "evaluation", "validation", "save", "compile"})
"""Phases in which a job takes no steps and is well: detectors give them a patience of their own."""


class Life:
    """One rank's life. ``tell(kind, step, detail)`` sends an event."""

    def __init__(self, tell: Callable[[str, int | None, dict[str, Any]], None], timed: bool = True) -> None:
        self.thread = threading.get_ident()
        """The thread that called ``init``: it is taken to be the one that trains."""
        self.heard = _clock.monotonic()
        """When the training thread last called anything here."""
        self.phase: str | None = None
        self.data_seconds: float | None = None
        """How long batches were waited for since the last step; ``None`` where nobody measures it."""
        self.step: int | None = None
        self.longest = 0.0
        """The longest time between two steps so far, phases aside."""
        self._tell, self._timed = tell, timed
        self._stepped_at: float | None = None
        self._phase_ended = 0.0

    def mark(self, values: dict[str, object]) -> None:
        """Called by ``run.log`` where there is a phase or a loader: what only this moment knows goes into the row."""
        if values and COLUMNS.isdisjoint(values):
            return  # nothing but metrics
        if self.phase is not None:
            values.setdefault("phase", self.phase)
        elif self.data_seconds is not None:
            values.setdefault("data_seconds", self.data_seconds)
            self.data_seconds = 0.0

    def fill(self, row: dict[str, Any]) -> None:
        """Called by the sender's thread with each training row: ``step_seconds``, where the job did not say it."""
        step, now = row["step"], row["time"]
        if "phase" in row:
            self._stepped_at = None  # the time of a phase is in no step
            row.pop("data_seconds", None)
        elif step != self.step:
            before, self._stepped_at = self._stepped_at, now
            paused = before is not None and before <= self._phase_ended <= now
            if before is not None and not paused and self.step is not None and step > self.step and now > before:
                self.longest = max(self.longest, now - before)
                if self._timed:
                    row.setdefault("step_seconds", (now - before) / (step - self.step))
        self.step = step

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """The time of the block belongs to no step."""
        outer, self.phase, self.heard = self.phase, name, _clock.monotonic()
        self._tell("phase", self.step, {"phase": name, "state": "begin"})
        try:
            yield
        finally:
            self.phase, self.heard, self._phase_ended = outer, _clock.monotonic(), _clock.now()
            self.data_seconds = None if self.data_seconds is None else 0.0
            self._tell("phase", self.step, {"phase": name, "state": "end"})

    def loading(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``, one by one; how long each was waited for is the step's ``data_seconds``."""
        source = iter(batches)
        self.data_seconds = 0.0
        while True:
            begin = self.heard = _clock.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.heard = _clock.monotonic()
            self.data_seconds = (self.data_seconds or 0.0) + self.heard - begin
            yield batch
