"""The curve of one attempt of a job: loss and gradient norm by step, bounded, with non-finite points kept.

A point is present, absent or non-finite, for each column on its own. When the curve is full, it is thinned evenly over
its steps, and what tells most stays: a spike is not thinned away by the dull steps around it, nor a NaN by a spike.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

POINTS_MAX = 4_096
"""Twice the pixels of a wide screen; 4,096 points of 5 columns are 170 KiB."""
COLUMNS = ("loss", "grad_norm")


class Curve:
    """Points sorted by step. ``version`` grows with each change, and each point has the one that changed it last."""

    def __init__(self, points_max: int = POINTS_MAX) -> None:
        self.version = 0
        self.count = 0
        self.thinned = 0
        """How many points were dropped to stay within the bound."""
        self.steps = np.zeros(points_max, np.int64)
        self.times = np.zeros(points_max)
        self.versions = np.zeros(points_max, np.int64)
        self.values = np.full((len(COLUMNS), points_max), np.nan)
        self.valid = np.zeros((len(COLUMNS), points_max), np.bool_)

    def put(self, step: int, time: float, values: tuple[float | None, ...]) -> None:
        """Set the point at ``step``; a value that is ``None`` leaves what an earlier row of that step said."""
        at = self._place(step)
        self.version += 1
        self.times[at] = time
        self.versions[at] = self.version
        for column, value in enumerate(values):
            if value is not None:
                self.values[column, at] = value
                self.valid[column, at] = True

    def _place(self, step: int) -> int:
        at = self.count
        if at and step <= self.steps[at - 1]:
            at = int(np.searchsorted(self.steps[:at], step))
            if self.steps[at] == step:
                return at
        if self.count == len(self.steps):
            self._thin()
            at = int(np.searchsorted(self.steps[: self.count], step))
        for array in (self.steps, self.times, self.versions):
            array[at + 1 : self.count + 1] = array[at : self.count]
        for table in (self.values, self.valid):
            table[:, at + 1 : self.count + 1] = table[:, at : self.count]
        self.steps[at] = step
        self.values[:, at] = np.nan
        self.valid[:, at] = False
        self.count += 1
        return at

    def _thin(self) -> None:
        """Halve all but the newest quarter, evenly over the steps: its whole history stays on the curve."""
        old = self.count * 3 // 4
        kept = np.concatenate(
            [_telling(self.steps[:old], self.values[:, :old], self.valid[:, :old]), np.arange(old, self.count)]
        )
        for array in (self.steps, self.times, self.versions):
            array[: len(kept)] = array[kept]
        for table in (self.values, self.valid):
            table[:, : len(kept)] = table[:, kept]
        self.thinned += self.count - len(kept)
        self.count = len(kept)

    def since(self, version: int) -> Array:
        """Which points have changed after ``version``, oldest step first."""
        return np.flatnonzero(self.versions[: self.count] > version)

    def rate(self, now: float, window_seconds: float) -> float | None:
        """Steps a second over the last ``window_seconds`` before ``now``; ``None`` with fewer than two points."""
        within = np.flatnonzero(self.times[: self.count] >= now - window_seconds)
        if len(within) < 2:
            return None
        first, last = within[0], within[-1]
        seconds = float(self.times[last] - self.times[first])
        return float(self.steps[last] - self.steps[first]) / seconds if seconds > 0 else None

    def last(self, column: int) -> float | None:
        """The newest value of a column that is not absent."""
        held = np.flatnonzero(self.valid[column, : self.count])
        return float(self.values[column, held[-1]]) if len(held) else None


def _telling(steps: Array, values: Array, valid: Array) -> Array:
    """Which points to keep: of each span of steps the largest finite point and one non-finite one.

    A span is a power of two and begins at a multiple of itself: spans that followed the newest step would, time after
    time, take the point of the last span forward with them and leave a hole behind.
    """
    spans = max(1, len(steps) // 4)
    span = steps >> int((steps[-1] - steps[0]) // spans).bit_length()
    size = np.where(valid, np.abs(values), -1.0)
    nonfinite = ~np.isfinite(size).all(axis=0)
    largest = np.where(nonfinite, 0.0, size.max(axis=0))
    group = 2 * span + nonfinite
    order = np.lexsort((largest, group))
    last_of_group = np.flatnonzero(np.diff(group[order], append=-1))
    return np.sort(order[last_of_group])
