"""The spool: what a node could not send, on its own disk, until it is sent.

It is the embedded log in a folder of its own (durable appends, safe in a crash), read from a position that is committed
once a frame is durable elsewhere. What its bounds take is counted, oldest first, topic by topic, so that a flood of
one kind of rows leaves the others alone. Times are the machine's running clock: setting the wall clock drops nothing
and moves nothing.
"""

import asyncio
import logging
import os
import struct
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from collectors.moment import Moment, RunningClock, machine_boot, moment_of
from collectors.spool_folder import locked, set_aside
from telemetry_bus.bus import AtOffset, Record
from telemetry_bus.embedded import EmbeddedBus, TopicLimit
from telemetry_bus.errors import (
    BusClosed,
    BusUnavailable,
    FrameError,
    FrameFault,
    InvalidPayload,
    LogRemoved,
    UnreadableLog,
)
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TELEMETRY, Topic

SPOOL_BYTES = 1024**3
"""Four hours of a busy node: a frame of 8 GPUs is 4.9 KB, 14,400 of them are 70 MB; a step of 8 ranks is 3.4 KB, which
at ten steps a second is 490 MB. Twice that."""
SPOOL_BYTES_MIN = 8 * 1024**2
SPOOL_AGE_SECONDS = 15_000.0
"""Four hours and ten minutes, well within the six hours for which a reader waits for what it misses."""
SHARES: Mapping[Topic, float] = {
    Topic.GPU: 0.25,
    Topic.TRAIN: 0.5,
    Topic.LINKS: 0.0625,
    Topic.METRICS: 0.0625,
    Topic.EVENTS: 0.125,
}
"""What each topic may take of the whole."""
SLACK_BYTES = 64 * 1024**2
SLACK_SECONDS = 3600.0
"""The log's own bounds are so much wider than ours, by which rows are counted before they go: it deletes only what was
sent or counted."""
ROOM = 1 / 64
"""At its bound a topic is emptied by so much more, so that not every append has to look for the oldest."""
READ_SECONDS_MAX = 10.0
"""A batch (256 frames, 4 MiB) is read within milliseconds. What is not there after so long is not there at all."""

_ENTRY = struct.Struct("<4s16sddI?H")
"""Magic, the machine's boot, wall and monotonic clock, rows, simulated, and how long the partition key behind it is."""
_MAGIC = b"NTS1"
_DRAINED, _LOOKED = "drain", "ripcord"
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """Where the spool is and what it may hold. ``boot`` is the machine's start; default: the kernel's word."""

    folder: Path
    bytes: int = SPOOL_BYTES
    age_seconds: float = SPOOL_AGE_SECONDS
    boot: uuid.UUID | None = None

    def __post_init__(self) -> None:
        if self.bytes < SPOOL_BYTES_MIN:
            raise ValueError(f"a spool of {self.bytes} bytes: expected at least {SPOOL_BYTES_MIN}")

    def build(self, clock: Clock) -> "Spool":
        """The spool, not yet open."""
        return Spool(self, clock)


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame in the spool: encoded, and when it was stamped."""

    topic: Topic
    offset: int
    kept: float
    stamped: Moment
    rows: int
    simulated: bool
    size: int
    key: str
    """The partition key under which it is sent."""
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in a spool. ``oldest_seconds`` is ``None`` when nothing does."""

    frames: int
    bytes: int
    oldest_seconds: float | None


@dataclass(slots=True)
class _Held:
    """What waits of one topic. ``position`` is the offset of the next entry that is to be sent."""

    limit: int
    position: int = 0
    frames: int = 0
    rows: int = 0
    bytes: int = 0
    oldest: float | None = None

    def add(self, size: int, rows: int, kept: float) -> None:
        self.frames += 1
        self.rows += rows
        self.bytes += size
        self.oldest = kept if self.oldest is None else self.oldest

    def take(self, entry: Entry) -> bool:
        """Whether ``entry`` still counted here; it does no more."""
        if entry.offset < self.position:
            return False
        self.position = entry.offset + 1
        self.frames -= 1
        self.rows -= entry.rows
        self.bytes -= entry.size
        self.oldest = entry.kept if self.frames else None
        return True


class SpoolBegunAnew(BusUnavailable):
    """The spool's log was damaged or deleted; a new one is there."""


class Spool:
    """Use it in ``async with``. All methods raise BusUnavailable while the disk takes or gives nothing."""

    def __init__(self, config: SpoolConfig, clock: Clock) -> None:
        self.config = config
        self.boot = config.boot or uuid.UUID(int=0)
        """Which start of the machine this is, known once open."""
        self.dropped: Counter[bool] = Counter()
        """Rows that the bounds took and nobody was told of yet, by whether they were simulated."""
        self.frames_dropped = self.rows_dropped = 0
        """Since this process started; they only grow."""
        self._clock, self._running = clock, RunningClock(clock)
        self._held = {topic: _Held(int(config.bytes * SHARES[topic])) for topic in TELEMETRY}
        self._bus: EmbeddedBus | None = None
        self._lock: int | None = None
        self._mending = asyncio.Lock()
        self._looked: dict[Topic, int] = {}

    async def __aenter__(self) -> Self:
        """Open it, and find what the process before left. Raises SpoolTaken, InaccessibleFolder, UnsuitableFolder."""
        self._lock = await asyncio.to_thread(locked, self.config.folder)
        if self.config.boot is None:
            self.boot = await asyncio.to_thread(machine_boot)
        try:
            self._bus = await self._opened()
            await self._count()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it; what was appended is durable already."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.__aexit__(*exc_info)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def depth(self) -> Depth:
        """What waits."""
        oldest = [held.oldest for held in self._held.values() if held.oldest is not None]
        age = max(0.0, self._running.now() - min(oldest)) if oldest else None
        return Depth(
            sum(held.frames for held in self._held.values()), sum(held.bytes for held in self._held.values()), age
        )

    def moment(self) -> Moment:
        """This instant, as an entry remembers it."""
        return moment_of(self._clock, self.boot)

    async def append(
        self, topic: Topic, payload: bytes, *, key: str, rows: int, simulated: bool, stamped: Moment
    ) -> int:
        """Keep an encoded frame that was ``stamped`` then; durable when it returns its offset."""
        name, boot = key.encode(), stamped.boot.bytes
        head = _ENTRY.pack(_MAGIC, boot, stamped.wall, stamped.monotonic, rows, simulated, len(name))
        data = head + name + payload
        try:
            (offset,) = await self._appended(topic, data)
        except InvalidPayload as error:
            raise FrameError(FrameFault.TOO_LARGE, f"for the spool: {error}") from error
        held = self._held[topic]
        held.add(len(data), rows, self._running.now())
        if held.bytes > held.limit:
            most = held.limit * (1 - ROOM)
            await self._drop(topic, lambda _: self._held[topic].bytes > most)
        return offset

    async def _appended(self, topic: Topic, data: bytes) -> Sequence[int]:
        try:
            return await self._with_log(lambda bus: bus.publish(topic, [data]))
        except SpoolBegunAnew:
            return await self._with_log(lambda bus: bus.publish(topic, [data]))

    async def read(self) -> list[Entry]:
        """The oldest entries, in order; none if there are none. Say :meth:`settle` once they are durable elsewhere."""
        return await self._oldest([topic for topic, held in self._held.items() if held.frames])

    async def settle(self, entries: Sequence[Entry]) -> None:
        """Remember durably that ``entries``, all that :meth:`read` gave, need no more care."""
        for entry in entries:
            self._held[entry.topic].take(entry)
        await self._commit({entry.topic for entry in entries})

    async def expire(self) -> None:
        """Drop what is older than the bound."""
        oldest = self._running.now() - self.config.age_seconds
        for topic in TELEMETRY:
            kept = self._held[topic].oldest
            if kept is not None and kept < oldest:
                await self._drop(topic, lambda entry: entry.kept < oldest)

    def looked_at(self, topic: Topic, offset: int) -> None:
        """Say that the detectors of this node have seen this entry; :meth:`remember_looked` makes it durable."""
        self._looked[topic] = max(offset + 1, self._looked.get(topic, 0))

    async def remember_looked(self) -> None:
        """Make durable what the detectors have seen, if there is news."""
        looked, self._looked = self._looked, {}
        if looked:
            await self._with_log(lambda bus: bus.commit(_LOOKED, {topic: {0: at} for topic, at in looked.items()}))

    async def not_looked_at(self, topics: Sequence[Topic]) -> list[Entry]:
        """Entries of ``topics`` that wait here and that no detector of this node has seen: a kill came between."""
        committed = await self._with_log(lambda bus: bus.committed(_LOOKED))
        found: list[Entry] = []
        for topic in topics:
            start = max(self._held[topic].position, committed.get(topic, {}).get(0, 0))
            if self._held[topic].frames and start < await self._end(topic):
                found += await self._batch({topic: start})
        return sorted(found, key=lambda entry: entry.offset)

    def take_dropped(self) -> Counter[bool]:
        """Rows that the bounds took since this was last asked."""
        told, self.dropped = self.dropped, Counter()
        return told

    def count_lost(self, entry: Entry) -> None:
        """Count an entry that nobody can send: it is damaged, or was refused for ever."""
        self.frames_dropped += 1
        self.rows_dropped += entry.rows
        self.dropped[entry.simulated] += entry.rows

    async def _drop(self, topic: Topic, too_much: Callable[[Entry], bool]) -> None:
        """Count and pass over the oldest entries of ``topic`` for as long as there is ``too_much``."""
        dropping = True
        while dropping and (entries := await self._oldest([topic] if self._held[topic].frames else [])):
            for entry in entries:
                dropping = too_much(entry)
                if not dropping:
                    self._held[topic].oldest = entry.kept
                    break
                if self._held[topic].take(entry):
                    self.count_lost(entry)
        await self._commit({topic})

    async def _oldest(self, topics: Sequence[Topic]) -> list[Entry]:
        if not topics:
            return []
        try:
            return await self._batch({topic: self._held[topic].position for topic in topics})
        except SpoolBegunAnew:
            return []
        except TimeoutError:
            _log.error("the spool %s has lost entries that were in it: they are counted", self.config.folder)
            self._give_up(topics)
            return []

    async def _batch(self, positions: Mapping[Topic, int]) -> list[Entry]:
        async def read(bus: EmbeddedBus) -> list[Entry]:
            starts = {topic: AtOffset(position) for topic, position in positions.items()}
            async with asyncio.timeout(READ_SECONDS_MAX), bus.subscribe(tuple(starts), starts) as subscription:
                async for records in subscription:
                    return [self._entry(record) for record in records]
            return []

        return await self._with_log(read)

    def _entry(self, record: Record) -> Entry:
        size = len(record.payload)
        head = record.payload[: _ENTRY.size]
        if len(head) < _ENTRY.size or head[:4] != _MAGIC:
            # Not written by this version: it is no frame, and is counted where it would be sent.
            return Entry(record.topic, record.offset, record.time, self.moment(), 0, False, size, "", b"")
        _, boot, wall, monotonic, rows, simulated, length = _ENTRY.unpack(head)
        at = _ENTRY.size + length
        key = record.payload[_ENTRY.size : at].decode(errors="replace")
        stamped = Moment(uuid.UUID(bytes=boot), wall, monotonic)
        payload = record.payload[at:]
        return Entry(record.topic, record.offset, record.time, stamped, rows, simulated, size, key, payload)

    async def _end(self, topic: Topic) -> int:
        return (await self._with_log(lambda bus: bus.ends(topic)))[0]

    async def _commit(self, topics: set[Topic]) -> None:
        positions = {topic: {0: self._held[topic].position} for topic in topics}
        with suppress(SpoolBegunAnew):
            await self._with_log(lambda bus: bus.commit(_DRAINED, positions))

    async def _with_log(self, work: Callable[[EmbeddedBus], Awaitable[T]]) -> T:
        """Do ``work``. Raises SpoolBegunAnew where the log has turned out to be damaged or deleted."""
        bus = self._bus
        if bus is None:
            raise BusClosed(self.config.folder.as_uri(), "use the spool")
        try:
            return await work(bus)
        except (UnreadableLog, LogRemoved) as error:
            if self._lock is None:
                raise  # who only looks changes nothing
            await self._begin_anew(bus, error)
            raise SpoolBegunAnew(bus.url, "keep what was in it", error) from error

    async def _begin_anew(self, damaged: EmbeddedBus, why: Exception) -> None:
        async with self._mending:
            if self._bus is not damaged:
                return  # somebody else was quicker
            _log.error("the spool begins anew, and what waited in it is counted as dropped: %s", why)
            self._give_up(TELEMETRY)
            await damaged.__aexit__(None, None, None)
            await asyncio.to_thread(set_aside, self.config.folder)
            self._bus = await self._opened()
            for held in self._held.values():
                held.position = 0

    def _give_up(self, topics: Sequence[Topic]) -> None:
        for topic in topics:
            held = self._held[topic]
            self.frames_dropped += held.frames
            self.rows_dropped += held.rows
            self.dropped[False] += held.rows
            self._held[topic] = _Held(held.limit, held.position)

    async def _opened(self) -> EmbeddedBus:
        """The log, open. One that is no log any more is set aside."""
        limits = {
            topic: TopicLimit(held.limit + SLACK_BYTES, self.config.age_seconds + SLACK_SECONDS)
            for topic, held in self._held.items()
        }
        bus = EmbeddedBus(self.config.folder, self._running, limits)
        try:
            return await bus.__aenter__()
        except UnreadableLog as error:
            _log.error("the spool begins anew: %s", error)
            await asyncio.to_thread(set_aside, self.config.folder)
        bus = EmbeddedBus(self.config.folder, self._running, limits)
        return await bus.__aenter__()

    async def _count(self) -> None:
        """Know what waits, and let the running clock go on where the newest entry ends."""
        newest = None
        with suppress(SpoolBegunAnew):
            newest = await self._survey()
        self._running.set_going(self._clock.now() if newest is None else _goes_on_at(newest, self.moment()))

    async def _survey(self) -> Entry | None:
        """Count what waits, and return the newest of it."""
        committed = await self._with_log(lambda bus: bus.committed(_DRAINED))
        newest: Entry | None = None
        for topic, held in self._held.items():
            at, end = committed.get(topic, {}).get(0, 0), await self._end(topic)
            held.position = at
            while at < end:
                try:
                    entries = await self._batch({topic: at})
                except TimeoutError:
                    break  # trimmed, all of them
                for entry in entries:
                    held.add(entry.size, entry.rows, entry.kept)
                    newest = entry if newest is None or entry.offset > newest.offset else newest
                at = entries[-1].offset + 1
        return newest


async def waiting_in(folder: Path, clock: Clock) -> Depth:
    """What waits in the spool in ``folder``, whoever uses it: nothing is locked, sent, or dropped."""
    spool = Spool(SpoolConfig(folder), clock)
    spool.boot = await asyncio.to_thread(machine_boot)
    async with EmbeddedBus(folder, clock, {}) as spool._bus:
        await spool._count()
    spool._bus = None
    return spool.depth


def _goes_on_at(newest: Entry, now: Moment) -> float:
    """What the running clock shows now: time in which the machine was off does not count."""
    same = newest.stamped.boot == now.boot
    return newest.kept + max(0.0, now.monotonic - newest.stamped.monotonic if same else now.monotonic)
