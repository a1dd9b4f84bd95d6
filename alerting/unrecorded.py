"""Paging before the store has ever answered: a process that starts while its store is away, or is garbage.

How far the findings were taken is written in the store. Until it can be read, findings are read from a while ago on,
and the critical ones are paged under the ids that they will be recorded with. Once the store answers, everything is
read again from its position on, so that nothing between that and the beginning of this reading is left out.
"""

import logging
from collections.abc import Callable, Sequence

from alerting.intake import FindingsIntake
from alerting.stats import Stats
from alerting.waits import Waits
from telemetry_bus.bus import AtOffset, AtTime, Bus, Start
from telemetry_bus.errors import BusError
from telemetry_bus.findings import Finding
from telemetry_bus.topics import Topic

WINDOW_SECONDS = 900.0
"""How far back is read. A process is started again within minutes of its death, even with its machine; what is older
was told by the one before, or waits on the bus for the store."""

_log = logging.getLogger(__name__)


async def read_unrecorded(bus: Bus, since: float, stats: Stats, found: Callable[[Sequence[Finding]], None]) -> None:
    """Give ``found`` the findings that were appended at ``since`` (UTC seconds) or later, until cancelled.

    What cannot be read is left for the reading that records: only that one writes dead letters.
    """
    start: Start = AtTime(since)
    intake, waits = FindingsIntake(), Waits()
    following: dict[int, int] = {}
    while True:
        try:
            async with bus.subscribe([Topic.FINDINGS], start) as subscription:
                async for records in subscription:
                    waits.reset()
                    found(intake.take(records).findings)
                    following |= {record.partition: record.offset + 1 for record in records}
                    start = AtOffset(partitions=dict(following))
        except BusError as error:
            stats.bus_failures_total += 1
            _log.warning("%s", error)
        await waits.wait()
