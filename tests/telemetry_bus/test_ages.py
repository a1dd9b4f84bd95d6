"""Ages: how old rows are when a role has dealt with them."""

from __future__ import annotations

import uuid

from telemetry_bus import Run
from telemetry_bus.ages import BOUNDS_SECONDS, Ages
from telemetry_bus.manifest import Manifest

NOW = 1_700_000_000.0


def test_rows_are_counted_in_the_bucket_of_their_age() -> None:
    """Each row once, by the time since its maker let it go; a clock that is ahead makes no negative age."""
    ages = Ages()
    sent = [(NOW, 3), (NOW - 0.5, 8), (NOW - 1000.0, 1), (NOW + 2.0, 0), (NOW + 1.0, 5)]
    ages.add(Manifest.of(Run("n", uuid.UUID(int=1), seq, rows, at) for seq, (at, rows) in enumerate(sent)), NOW)
    buckets = dict(ages.cumulative())
    assert (buckets["0.001"], buckets["0.4"], buckets["0.5"], buckets["300"], buckets["+Inf"]) == (8, 8, 16, 16, 17)
    assert ages.sum_seconds == 0.5 * 8 + 1000.0
    assert list(buckets) == [*(f"{bound:g}" for bound in BOUNDS_SECONDS), "+Inf"]
