"""Ends of trouble that were said by nodes which were cut off: what they have seen is not among the live rows."""

import asyncio
import logging
from collections.abc import Callable

from telemetry_bus.bus import AtOffset, AtTime, Bus, Record, Start
from telemetry_bus.cut_off import RIPCORD, clock_offsets, settled
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.findings import Finding, findings_in
from telemetry_bus.intake import Intake
from telemetry_bus.schemas import FindingState
from telemetry_bus.topics import Topic

AGAIN_SECONDS = 0.5
"""A bus that is back is found within half a second."""

_log = logging.getLogger(__name__)


async def hear_of_ends(bus: Bus, since: float, heard: Callable[[Finding], None]) -> None:
    """Give ``heard`` the ends that were said from then (UTC seconds) on, until cancelled."""
    start: Start = AtTime(since)
    intake, following = Intake(), dict[int, int]()
    while True:
        try:
            async with bus.subscribe((Topic.FINDINGS,), start) as subscription:
                async for records in subscription:
                    for record in records:
                        for finding in _ends_in(intake, record):
                            heard(finding)
                        following[record.partition] = record.offset + 1
                    start = AtOffset(partitions=dict(following))
        except BusUnavailable as error:
            _log.warning("detectors do not hear of ends: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)


def _ends_in(intake: Intake, record: Record) -> list[Finding]:
    """The ends in a record that a cut-off node has said; what cannot be read has been refused by alerting."""
    frame = intake.take(record).frame
    try:
        found = [] if frame is None else settled(findings_in(frame), clock_offsets(frame, record.time), record.time)
    except ValueError as error:
        _log.warning("findings at offset %d cannot be heard: %s", record.offset, error)
        return []
    return [item for item in found if item.state is FindingState.RESOLVED and RIPCORD in item.evidence]
