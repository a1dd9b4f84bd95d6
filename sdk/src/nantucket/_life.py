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

    def __init__(self, tell: Callable[[str, int | None, dict[str, Any]], None]) -> None:
        self.thread = threading.get_ident()
        """The thread that called ``init``: it is taken to be the one that trains."""
        self.step: int | None = None
        self.phase: str | None = None
        self.heard = _clock.monotonic()
        """When the training thread last called anything here."""
        self.longest = 0.0
        """The longest time between two steps so far, phases aside."""
        self._tell = tell
        self._stepped_at: float | None = None
        self._data_seconds: float | None = None

    def stepped(self, step: int, values: dict[str, object]) -> None:
        """``run.log`` of ``step``: fills in what the job did not say, ``step_seconds``, ``data_seconds``, ``phase``."""
        now = self.heard = _clock.monotonic()
        if values and COLUMNS.isdisjoint(values):
            return  # nothing but metrics
        if self.phase is not None:
            values.setdefault("phase", self.phase)
        if step == self.step:
            return
        if self._stepped_at is not None and self.step is not None and step > self.step:
            took = (now - self._stepped_at) / (step - self.step)
            values.setdefault("step_seconds", took)
            self.longest = max(self.longest, now - self._stepped_at)
            if self._data_seconds is not None:
                values.setdefault("data_seconds", self._data_seconds / (step - self.step))
        self.step, self._stepped_at = step, now
        self._data_seconds = None if self._data_seconds is None else 0.0

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """The time of the block belongs to no step."""
        outer, self.phase, self.heard = self.phase, name, _clock.monotonic()
        self._tell("phase", self.step, {"phase": name, "state": "begin"})
        try:
            yield
        finally:
            self.phase, self.heard, self._stepped_at = outer, _clock.monotonic(), None
            self._data_seconds = None if self._data_seconds is None else 0.0
            self._tell("phase", self.step, {"phase": name, "state": "end"})

    def loading(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``, one by one; how long each was waited for is the step's ``data_seconds``."""
        source = iter(batches)
        self._data_seconds = 0.0
        while True:
            begin = self.heard = _clock.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.heard = _clock.monotonic()
            self._data_seconds = (self._data_seconds or 0.0) + self.heard - begin
            yield batch
