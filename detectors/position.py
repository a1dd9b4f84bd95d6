"""Where a detector service begins: behind what the one before it has dealt with, warmed by what came before that."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from detectors.memory import OpenFindings
from telemetry_bus.bus import WHOLE, AtOffset, AtTime, Bus, Positions, Record, Slice, Start
from telemetry_bus.findings import Finding, findings_in
from telemetry_bus.intake import Intake
from telemetry_bus.topics import TELEMETRY, Topic

GROUP = "detect"
"""Under this name every copy and slice commits: positions are by partition, so other slices can go on from them."""
WARM_SECONDS = 3600.0
"""What is read back of a run: at 30 s a step these are 120 rows, nearly the whole window of 128 of loss_spike, which is
silent in its first 50."""
WARM_BULK_SECONDS = 600.0
"""The same for rows of GPUs and links and for named numbers, which are many and remembered for two minutes of work at
most."""
WARM: dict[Topic, float] = dict.fromkeys((*TELEMETRY, Topic.BACKLOG, Topic.TICKS), WARM_SECONDS) | {
    Topic.GPU: WARM_BULK_SECONDS,
    Topic.LINKS: WARM_BULK_SECONDS,
    Topic.METRICS: WARM_BULK_SECONDS,
    Topic.BACKLOG: WARM_BULK_SECONDS,
}
READ: tuple[Topic, ...] = tuple(WARM)
"""All telemetry, wanted or not: a source counts frames over all topics, and one left out looks like loss. The backlog
fills the holes that an outage has left."""
FIRST_SECONDS = 600.0
"""What is looked at, and spoken of, at the first start of all."""
MEMORY_SECONDS = 7 * 86_400.0
"""Findings that are read for what is still open: trouble that nobody has ended in a week is no news for anybody."""

ALONE = frozenset({Topic.TICKS, Topic.BACKLOG})
LARGE_BYTES = 256 * 1024
"""A frame of 800 GPUs: what an array operation costs there is its elements, not its call."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a service begins: the committed offsets, the ends of the topics, the bus's time (UTC seconds) of the first
    record that nobody has dealt with, and what of the records after that is in the dead-letter topic already (topic,
    partition, offset)."""

    part: Slice
    committed: Positions
    ends: Positions
    since: float
    refused: frozenset[tuple[str, int, int]]

    def is_live(self, record: Record) -> bool:
        """Whether nobody has dealt with ``record`` yet."""
        return record.offset >= self.committed.get(record.topic, {}).get(record.partition, 0)

    def groups(self, records: Sequence[Record]) -> Iterator[list[Record]]:
        """``records`` cut where the topic or the liveness changes. A tick stands alone, for it is a moment; so does a
        frame of the backlog, whose neighbour may be of another schema; and so does a large frame, which gains nothing
        by being looked at together with others."""
        for _, group in groupby(records, self._company):
            yield list(group)

    def _company(self, record: Record) -> tuple[Topic, bool, int, int]:
        alone = record.topic in ALONE or len(record.payload) >= LARGE_BYTES
        return record.topic, self.is_live(record), record.partition if alone else -1, record.offset if alone else -1

    def was_refused(self, record: Record) -> bool:
        """Whether ``record`` is in the dead-letter topic already."""
        return (record.topic.value, record.partition, record.offset) in self.refused

    def starts(self) -> Mapping[Topic, Start]:
        """Where to begin so that detectors are warm at this position."""
        return {
            topic: AtTime(self.since - (seconds if self.committed else FIRST_SECONDS))
            for topic, seconds in WARM.items()
        }

    def partitions(self) -> Mapping[Topic, Sequence[int]]:
        """What this slice reads of every topic."""
        return {topic: self.part.among(ends) for topic, ends in self.ends.items()}


def tick_group(part: Slice) -> str:
    """Where a slice keeps how far it has come in the ticks, which every slice reads."""
    return GROUP if part == WHOLE else f"{GROUP}.{part.index}-of-{part.count}"


async def read_position(bus: Bus, part: Slice, now: float) -> Position:
    """Where the service before this one stopped, if there was one. ``now`` is UTC seconds."""
    ends = {topic: await bus.ends(topic) for topic in READ}
    committed = {topic: _here(offsets, part, ends[topic]) for topic, offsets in (await bus.committed(GROUP)).items()}
    if part != WHOLE:
        own = await bus.committed(tick_group(part))
        committed |= {topic: dict(offsets) for topic, offsets in own.items()}
    committed = {topic: offsets for topic, offsets in committed.items() if offsets}
    since = await _first_waiting(bus, part, committed, ends, now)
    return Position(part, committed, ends, since, await _refused_since(bus, since))


def _here(offsets: Mapping[int, int], part: Slice, ends: Mapping[int, int]) -> dict[int, int]:
    wanted = part.among(ends)
    return {at: offset for at, offset in offsets.items() if at in wanted}


async def _first_waiting(bus: Bus, part: Slice, committed: Positions, ends: Positions, now: float) -> float:
    """The bus's time of the oldest record that nobody has dealt with, or now."""
    waits = [ends[topic].get(at, 0) > offset for topic, offsets in committed.items() for at, offset in offsets.items()]
    if any(waits):
        waiting = {topic: AtOffset(partitions=offsets) for topic, offsets in committed.items()}
        async with bus.subscribe(tuple(committed), waiting, part) as subscription:
            async for records in subscription:
                return min(now, *(record.time for record in records))
    return now


async def still_open(bus: Bus, position: Position, detectors: Sequence[str], now: float) -> dict[str, list[Finding]]:
    """By detector, what was said of the time before the position and has not been taken back.

    What was said of later rows is left out: those rows are looked at again, and say it again under the same id.
    """
    if not position.committed or not any((await bus.ends(Topic.FINDINGS)).values()):
        return {}
    said, intake = OpenFindings(), Intake()
    async with bus.subscribe((Topic.FINDINGS,), AtTime(now - MEMORY_SECONDS)) as subscription:
        if not await subscription.caught_up():
            async for records in subscription:
                for record in records:
                    said.take(_findings_of(intake, record))
                if await subscription.caught_up():
                    break
    return {
        name: [finding for finding in said.of(name, position.since) if not _of_another(finding, position.part)]
        for name in detectors
    }


def _of_another(finding: Finding, part: Slice) -> bool:
    """Whether another slice of the same cut has said it: its rows are not read here, and its end is that slice's to
    say. What was said when the topics were cut otherwise is everybody's."""
    said = str(finding.evidence.get("slice", WHOLE))
    return said != str(part) and said.rpartition("/")[2] == str(part.count)


async def _refused_since(bus: Bus, since: float) -> frozenset[tuple[str, int, int]]:
    """What is in the dead-letter topic already: the commit that followed it was lost."""
    found, intake = set[tuple[str, int, int]](), Intake()
    if not any((await bus.ends(Topic.DEAD_LETTER)).values()):
        return frozenset()
    async with bus.subscribe((Topic.DEAD_LETTER,), AtTime(since)) as subscription:
        if await subscription.caught_up():
            return frozenset()
        async for records in subscription:
            frames = [taken.frame for taken in map(intake.take, records) if taken.frame is not None]
            for frame in frames:
                rows = frame.batch.select(["topic", "partition", "offset"]).to_pylist()
                found.update((row["topic"], row["partition"] or 0, row["offset"]) for row in rows)
            if await subscription.caught_up():
                break
    return frozenset(found)


def _findings_of(intake: Intake, record: Record) -> list[Finding]:
    """The findings of a record; what cannot be read has been refused by alerting, with its reason."""
    frame = intake.take(record).frame
    try:
        return [] if frame is None else findings_in(frame)
    except ValueError as error:
        _log.warning("findings at offset %d cannot be taken up again: %s", record.offset, error)
        return []
