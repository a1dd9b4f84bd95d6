"""How often a metric is read. The process that talks to the driver imports this: it needs the standard library alone.

A slow or rare metric is null in the rows in between, for null means not read. When it is due goes by the wall clock,
so that all nodes of a fleet read their slow metrics in the same second: merged frames are wide in that second and
narrow in the others.
"""

import math
from enum import StrEnum


class CostClass(StrEnum):
    """What a metric costs to read, and so how often it is."""

    SECOND = "second"
    """Once a second, or at each reading where readings are rarer: a call of microseconds whose answer moves."""
    SLOW = "slow"
    """Every 10 s: counters and states that move in a fault alone."""
    RARE = "rare"
    """Every 30 s: what hardly moves, and what is asked link by link."""

    @property
    def period_seconds(self) -> float:
        """Seconds from one reading of it to the next."""
        return _PERIODS[self]


_PERIODS = {CostClass.SECOND: 1.0, CostClass.SLOW: 10.0, CostClass.RARE: 30.0}


class Schedule:
    """Says which classes are due at a reading. The first reading takes all of them."""

    def __init__(self) -> None:
        self._read: dict[CostClass, int] = {}

    def due(self, now: float) -> frozenset[CostClass]:
        """The classes whose period has turned since they were last due. ``now`` is UTC seconds."""
        slots = {cost: math.floor(now / cost.period_seconds) for cost in CostClass}
        turned = frozenset(cost for cost, slot in slots.items() if self._read.get(cost) != slot)
        self._read.update({cost: slots[cost] for cost in turned})
        return turned

    def hasten(self, *costs: CostClass) -> None:
        """Make ``costs`` due at the next reading: something has happened that they tell of."""
        for cost in costs:
            self._read.pop(cost, None)
