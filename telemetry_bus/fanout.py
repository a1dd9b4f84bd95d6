"""The fan-out cache: one reader on the bus for a process, whatever the number of its readers.

The newest records of each topic stand in a ring bounded in bytes, in the order in which the bus gave them, those of
all partitions together. Every reader walks the ring at its own pace and gets the same record, payload and all, as every
other. Who is so slow that the ring has moved past him is moved forward and told how many records he skipped; nobody
waits for him, neither the bus nor the other readers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from telemetry_bus.bus import WHOLE, Bus, Latest, Record, Slice, Start
from telemetry_bus.cursor import Cursor, cursor_text, parse_cursor
from telemetry_bus.errors import BusError, BusUnavailable
from telemetry_bus.reading import Reading
from telemetry_bus.ring import Ring, RingClosed, RingReader, Skipped
from telemetry_bus.topics import Topic

RING_BYTES = 16 * 1024 * 1024
"""A topic's ring. The largest frame just fits; a fleet of 300,000 GPUs (some 65 MiB/s merged) is given a larger one."""
READERS_MAX = 1_280
"""Readers of a process: 1,000 programs, 256 that come while others' sockets are still closing, and the process's own.
A waiting reader costs some 2 KiB, and 100 bytes for each partition."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
"""While the bus is away it is asked again after 0.1 s, 0.2 s, ... at most 5 s."""

_log = logging.getLogger(__name__)


class ReadersFull(BusError):
    """The process serves as many readers as it may."""

    def __init__(self, readers_max: int) -> None:
        super().__init__(
            f"all {readers_max} readers of this process are taken: close one, or start another `nantucket serve`."
        )


class OffsetGone(BusError):
    """What was asked for is older than what the ring holds, in the partitions that ``earliest`` names."""

    def __init__(self, topic: Topic, asked: Cursor, earliest: Cursor) -> None:
        gone = {partition: asked[partition] for partition in earliest}
        super().__init__(
            f"offset {cursor_text(gone)} of {topic} is no longer held: the earliest here is {cursor_text(earliest)}. "
            "Start there, or without an offset; what is older is on the bus itself."
        )
        self.earliest = earliest


class Lane:
    """One topic of the fan-out: its ring, and where in the partitions it begins and ends.

    ``floor`` is what a reader before the ring's first record has to read next, by partition, ``following`` what one
    behind its last has. A partition of which nothing is known yet is in neither.
    """

    def __init__(self, topic: Topic, ring_bytes: int) -> None:
        self.topic = topic
        self.ring: Ring[Record] = Ring(ring_bytes)
        self.floor: dict[int, int] = {}
        self.following: dict[int, int] = {}

    def append(self, record: Record) -> None:
        """Take what the bus has given."""
        self.floor.setdefault(record.partition, record.offset)
        self.following[record.partition] = record.offset + 1
        for dropped in self.ring.append(record, len(record.payload)):
            self.floor[dropped.partition] = dropped.offset + 1

    def nothing_before(self, ends: Cursor) -> None:
        """The bus has been read up to ``ends``: what nothing came of begins there."""
        for partition, end in ends.items():
            if partition not in self.following:
                self.floor[partition] = self.following[partition] = end

    def refuse_gone(self, cursor: Cursor) -> None:
        """Raise :class:`OffsetGone` if something at or behind ``cursor`` has left the ring."""
        gone = {at: self.floor[at] for at, offset in cursor.items() if offset < self.floor.get(at, 0)}
        if gone:
            raise OffsetGone(self.topic, cursor, gone)

    def place(self, cursor: Cursor) -> tuple[int, dict[int, int]]:
        """The number of the first record that a reader at ``cursor`` has not read, and the state there."""
        state = dict(self.floor)
        for number, record in enumerate(self.ring, self.ring.first):
            if record.offset >= cursor.get(record.partition, 0):
                return number, state
            state[record.partition] = record.offset + 1
        return self.ring.end, state


class FanOutReader:
    """One reader of one topic: an async iterator of records and :class:`Skipped`. Use it with ``with``.

    It ends when the fan-out is closed.
    """

    def __init__(self, fan: "FanOut", lane: Lane, position: int, state: Cursor, cursor: Cursor | None = None) -> None:
        self._fan, self._lane = fan, lane
        self._reader = RingReader(lane.ring, position)
        self._open = False
        self._state = dict(state)
        # What this reader has read already that stands further on in the ring: another process interleaves otherwise.
        self._ahead = {at: offset for at, offset in (cursor or {}).items() if offset > self._state.get(at, 0)}

    @property
    def position(self) -> int:
        """The number, in this process, of the record that comes next."""
        return self._reader.position

    @property
    def in_step(self) -> bool:
        """Whether it stands where every reader of this position stands: what it has read, all of them have."""
        return not self._ahead

    @property
    def cursor(self) -> Cursor:
        """Where another reader would go on behind what this one has been given."""
        return {**self._state, **self._ahead}

    def __enter__(self) -> Self:
        self._fan.admit()
        self._open = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._open:
            self._open = False
            self._fan.readers -= 1

    def __aiter__(self) -> AsyncIterator[Record | Skipped]:
        return self

    async def __anext__(self) -> Record | Skipped:
        while True:
            try:
                item = await self._reader.next()
            except RingClosed:
                raise StopAsyncIteration from None
            if isinstance(item, Skipped):
                self._fan.skipped += item.count
                self._state = dict(self._lane.floor)
                self._drop_reached()
                return item
            self._state[item.partition] = item.offset + 1
            if not self._ahead:
                return item
            wanted = item.offset >= self._ahead.get(item.partition, 0)
            self._drop_reached()
            if wanted:
                return item

    def _drop_reached(self) -> None:
        self._ahead = {at: offset for at, offset in self._ahead.items() if offset > self._state.get(at, 0)}


class FanOut:
    """Reads ``topics`` of ``bus`` once, from ``start`` on, for all readers of this process. Use it with ``async with``.

    Of partitioned topics it reads the slice ``part``. While the bus is unavailable it tries again with backoff and goes
    on where it was; ``available`` says which.
    Counters: ``bus_reads`` (batches read), ``subscriptions`` (opened since the start: 1, and 1 for each time that the
    bus was away), ``readers`` (now), ``skipped`` (records that slow readers were moved past).
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[Topic],
        *,
        start: Start | None = None,
        part: Slice = WHOLE,
        ring_bytes: int = RING_BYTES,
        readers_max: int = READERS_MAX,
    ) -> None:
        self.topics = tuple(topics)
        self.bus_reads = 0
        self.subscriptions = 0
        self.readers = 0
        self.skipped = 0
        self.available = False
        self.failure: BaseException | None = None
        """What ended the reading for good: a fault of ours. While it is None, the fan-out reads or tries again."""
        self._bus = bus
        self._start: Start = Latest() if start is None else start
        self._part = part
        self._readers_max = readers_max
        self._lanes = {topic: Lane(topic, ring_bytes) for topic in self.topics}
        self._reading: Reading | None = None
        self._caught_up = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._pump = self._tasks.create_task(self._read(), name="fan-out")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._pump is not None:
            self._pump.cancel()
        if self._tasks is not None:
            await self._tasks.__aexit__(kind, error, trace)

    def close(self) -> None:
        """Let every reader end. The bus is read until the ``async with`` is left."""
        for lane in self._lanes.values():
            lane.ring.close()

    async def caught_up(self) -> None:
        """Wait until what was on the bus at the start is in the rings."""
        await self._caught_up.wait()

    @property
    def is_caught_up(self) -> bool:
        """Whether what was on the bus at the start is in the rings."""
        return self._caught_up.is_set()

    def end_position(self, topic: Topic) -> int:
        """The number, in this process, that the topic's next record will have."""
        return self._lanes[topic].ring.end

    def bytes_held(self, topic: Topic) -> int:
        """Bytes of payload in the topic's ring."""
        return self._lanes[topic].ring.bytes_held

    def room(self) -> None:
        """Raise :class:`ReadersFull` if no further reader is let in just now."""
        if self.readers >= self._readers_max:
            raise ReadersFull(self._readers_max)

    def admit(self) -> None:
        """Take a reader's place. Raises :class:`ReadersFull`."""
        self.room()
        self.readers += 1

    def cursor_of(self, topic: Topic, text: str) -> Cursor:
        """What ``text`` means in ``topic``. Raises :class:`~telemetry_bus.cursor.WrongCursor`."""
        return parse_cursor(text, topic, len(self._lanes[topic].following))

    def reader(self, topic: Topic, cursor: Cursor | None = None) -> FanOutReader:
        """A reader of ``topic``: from ``cursor`` on (in each partition from that offset or the next higher one), or of
        what comes now.

        Raises :class:`OffsetGone` if the ring no longer holds all of that.
        """
        lane = self._lanes[topic]
        if cursor is None:
            return FanOutReader(self, lane, lane.ring.end, lane.following)
        lane.refuse_gone(cursor)
        return FanOutReader(self, lane, *lane.place(cursor), cursor)

    def oldest(self, topic: Topic) -> FanOutReader:
        """A reader of ``topic`` from the oldest record that the ring holds."""
        lane = self._lanes[topic]
        return FanOutReader(self, lane, lane.ring.first, lane.floor)

    async def _read(self) -> None:
        wait_seconds = BACKOFF_FIRST_SECONDS
        try:
            while True:
                reads = self.bus_reads
                try:
                    await self._subscribe()
                except BusUnavailable as error:
                    self.available = False
                    _log.warning("%s The fan-out tries again in %.1f s.", error, wait_seconds)
                wait_seconds = BACKOFF_FIRST_SECONDS if self.bus_reads > reads else wait_seconds
                await asyncio.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, BACKOFF_MAX_SECONDS)
        except Exception as error:
            # A task group would only report this when it is left; the owner asks `failure` while it runs.
            self.available = False
            self.failure = error
            self.close()
            raise

    async def _subscribe(self) -> None:
        if self._reading is None:
            self._reading = Reading(dict.fromkeys(self.topics, self._start), await self._ends())
        async with self._bus.subscribe(self.topics, self._reading.starts(), self._part) as subscription:
            self.subscriptions += 1
            self.available = True
            if await subscription.caught_up():
                self._note_caught_up(self._reading)
            async for records in subscription:
                self.bus_reads += 1
                for record in self._reading.take(records):
                    self._lanes[record.topic].append(record)
                if not self._caught_up.is_set() and await subscription.caught_up():
                    self._note_caught_up(self._reading)

    async def _ends(self) -> dict[Topic, dict[int, int]]:
        ends = {topic: await self._bus.ends(topic) for topic in self.topics}
        return {topic: {at: found[at] for at in self._part.among(found)} for topic, found in ends.items()}

    def _note_caught_up(self, reading: Reading) -> None:
        for topic, ends in reading.ends.items():
            self._lanes[topic].nothing_before(ends)
        self._caught_up.set()
