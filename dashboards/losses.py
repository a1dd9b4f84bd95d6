"""Loss, source by source: the worst of them, and the rest in one sum. Pure."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

from telemetry_bus.ledger import SourceCount, SourceLedger

SOURCES_TOLD_MAX = 256
"""Sources that are told by name, for each kind of loss: 768 series at most."""
SOURCES_READ_MAX = 8_192
"""Boots that are looked at for the worst: in an outage every one of 37,500 has holes, and all are alike."""
THE_REST = "(others)"
"""What stands for all sources that are not told by name."""


def by_source(ledger: SourceLedger, most: int = SOURCES_TOLD_MAX) -> Mapping[str, Mapping[str, int]]:
    """``outstanding``, ``lost`` and ``duplicate`` by source: those with the most, and the rest as one, so that sums
    are right."""
    return {
        "outstanding": _worst(ledger.holed(), "holes", ledger.outstanding, most),
        "lost": _worst(ledger.losers(), "lost", ledger.lost_total, most),
        "duplicate": _worst(ledger.repeated(), "duplicates", ledger.duplicate_total, most),
    }


def _worst(counts: Iterable[SourceCount], what: str, total: int, most: int) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for count in islice(counts, SOURCES_READ_MAX):
        number = len(count.holes) if what == "holes" else int(getattr(count, what))
        if number:
            found[count.source] += number
    told = dict(heapq.nlargest(most, found.items(), key=lambda item: item[1]))
    rest = total - sum(told.values())
    return told | ({THE_REST: rest} if rest > 0 else {})
