"""How old rows are when a role has dealt with them: a histogram that costs one addition a frame.

Pure. The age of a row is the time since its maker let it go, on the bus's clock.
"""

from collections.abc import Iterator

import numpy as np

from telemetry_bus.manifest import Array, Manifest

BOUNDS_SECONDS: tuple[float, ...] = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0),
    *(1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Fine around what a page has time for (a second), coarse where it is too late anyway."""


class Ages:
    """Counts rows by age."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(len(BOUNDS_SECONDS) + 1, dtype=np.int64)
        self.sum_seconds = 0.0
        """The ages of all rows together."""

    def add(self, manifest: Manifest, now: float) -> None:
        """Count the rows of a frame dealt with at ``now`` (UTC seconds). What is younger than 0 s is 0 s old."""
        ages = np.maximum(now - manifest.sents, 0.0)
        places = np.searchsorted(BOUNDS_SECONDS, ages, side="left")
        self.counts += np.bincount(places, weights=manifest.rows, minlength=len(self.counts)).astype(np.int64)
        self.sum_seconds += float(ages @ manifest.rows)

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """The buckets as Prometheus wants them: upper bound, and rows of at most that age."""
        bounds = [*(f"{bound:g}" for bound in BOUNDS_SECONDS), "+Inf"]
        yield from zip(bounds, np.cumsum(self.counts).astype(float).tolist(), strict=True)
