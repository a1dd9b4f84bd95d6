"""The fan-out cache: one reader on the bus for a process, whatever the number of its readers.

The newest records of each topic stand in a ring bounded in bytes. Every reader walks the ring at its own pace and gets
the same record, payload and all, as every other. Who is so slow that the ring has moved past him is moved forward and
told how many records he skipped; nobody waits for him, neither the bus nor the other readers.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from telemetry_bus.bus import Bus, Latest, Record, Start
from telemetry_bus.errors import BusError, BusUnavailable
from telemetry_bus.reading import Reading
from telemetry_bus.topics import Topic

RING_BYTES = 16 * 1024 * 1024
"""A topic's ring. The largest frame just fits; a fleet of 300,000 GPUs (some 65 MiB/s merged) is given a larger one."""
READERS_MAX = 1_024
"""Readers of a process: 1,000 walls and the process's own. A waiting reader costs some 2 KiB."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
"""While the bus is away it is asked again after 0.1 s, 0.2 s, ... at most 5 s."""

Item = TypeVar("Item")
_log = logging.getLogger(__name__)


class ReadersFull(BusError):
    """The process serves as many readers as it may."""

    def __init__(self, readers_max: int) -> None:
        super().__init__(
            f"all {readers_max} readers of this process are taken: close one, or start another `nantucket serve`."
        )


class RingClosed(BusError):
    """The ring that a reader waited on was closed."""

    def __init__(self) -> None:
        super().__init__("the fan-out was closed: nothing more will come.")


class OffsetGone(BusError):
    """What was asked for is older than what the ring holds."""

    def __init__(self, topic: Topic, offset: int, earliest: int) -> None:
        super().__init__(
            f"offset {offset} of {topic} is no longer held: the earliest here is {earliest}. Start there, or without "
            "an offset; what is older is on the bus itself."
        )
        self.earliest = earliest


@dataclass(frozen=True, slots=True)
class Skipped:
    """A slow reader was moved forward past ``count`` items (1 or more), which it will not get."""

    count: int


class Ring(Generic[Item]):
    """The newest items, bounded in bytes. Items are numbered from 0; ``first`` and ``end`` delimit what is kept.

    The newest item is kept whatever its size.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self.first = 0
        self.closed = False
        self._items: deque[tuple[Item, int]] = deque()
        self._more = asyncio.Event()

    @property
    def end(self) -> int:
        """The number that the next item will have."""
        return self.first + len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _size in self._items)

    def __getitem__(self, number: int) -> Item:
        return self._items[number - self.first][0]

    def append(self, item: Item, size: int) -> None:
        """Add ``item`` of ``size`` bytes, drop the oldest beyond the bound, and wake who waits."""
        self._items.append((item, size))
        self.bytes_held += size
        while self.bytes_held > self.bytes_max and len(self._items) > 1:
            self.bytes_held -= self._items.popleft()[1]
            self.first += 1
        self._wake()

    def close(self) -> None:
        """Let waiting readers end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        # One event per generation: who waits holds the old one, so nobody can miss the change or has to clear it.
        self._more.set()
        self._more = asyncio.Event()

    async def wait_past(self, number: int) -> None:
        """Wait until item ``number`` has been added. Raises :class:`RingClosed` if it never will be."""
        while number >= self.end:
            if self.closed:
                raise RingClosed
            await self._more.wait()


class RingReader(Generic[Item]):
    """One reader of a ring, standing before item ``position``."""

    def __init__(self, ring: Ring[Item], position: int) -> None:
        self._ring = ring
        self.position = position

    async def next(self) -> Item | Skipped:
        """The next item, or how many were skipped. Raises :class:`RingClosed`."""
        skipped = self._ring.first - self.position
        if skipped > 0:
            self.position = self._ring.first
            return Skipped(skipped)
        if self.position >= self._ring.end:
            await self._ring.wait_past(self.position)
            return await self.next()
        item = self._ring[self.position]
        self.position += 1
        return item


class FanOutReader:
    """One reader of one topic: an async iterator of records and :class:`Skipped`. Use it with ``with``.

    It ends when the fan-out is closed.
    """

    def __init__(self, fan: "FanOut", ring: Ring[Record], position: int) -> None:
        self._fan = fan
        self._reader = RingReader(ring, position)
        self._open = False

    @property
    def position(self) -> int:
        """The number, in this process, of the record that comes next."""
        return self._reader.position

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
        try:
            item = await self._reader.next()
        except RingClosed:
            raise StopAsyncIteration from None
        if isinstance(item, Skipped):
            self._fan.skipped += item.count
        return item


class FanOut:
    """Reads ``topics`` of ``bus`` once, from ``start`` on, for all readers of this process. Use it with ``async with``.

    While the bus is unavailable it tries again with backoff and goes on where it was; ``available`` says which.
    Counters: ``bus_reads`` (batches read), ``subscriptions`` (opened since the start: 1, and 1 for each time that the
    bus was away), ``readers`` (now), ``skipped`` (records that slow readers were moved past).
    """

    def __init__(
        self,
        bus: Bus,
        topics: Sequence[Topic],
        *,
        start: Start | None = None,
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
        self._readers_max = readers_max
        self._rings: dict[Topic, Ring[Record]] = {topic: Ring(ring_bytes) for topic in self.topics}
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
        for ring in self._rings.values():
            ring.close()

    async def caught_up(self) -> None:
        """Wait until what was on the bus at the start is in the rings."""
        await self._caught_up.wait()

    @property
    def is_caught_up(self) -> bool:
        """Whether what was on the bus at the start is in the rings."""
        return self._caught_up.is_set()

    def end_position(self, topic: Topic) -> int:
        """The number, in this process, that the topic's next record will have."""
        return self._rings[topic].end

    def bytes_held(self, topic: Topic) -> int:
        """Bytes of payload in the topic's ring."""
        return self._rings[topic].bytes_held

    def room(self) -> None:
        """Raise :class:`ReadersFull` if no further reader is let in just now."""
        if self.readers >= self._readers_max:
            raise ReadersFull(self._readers_max)

    def admit(self) -> None:
        """Take a reader's place. Raises :class:`ReadersFull`."""
        self.room()
        self.readers += 1

    def reader(self, topic: Topic, offset: int | None = None) -> FanOutReader:
        """A reader of ``topic``: from the record with ``offset`` (or the next higher one) on, or of what comes now.

        Raises :class:`OffsetGone` if the ring no longer holds that offset.
        """
        ring = self._rings[topic]
        if offset is None:
            return FanOutReader(self, ring, ring.end)
        oldest = next(iter(ring), None)
        end = None if self._reading is None else self._reading.ends[topic].get(0)
        earliest = end if oldest is None else oldest.offset
        if earliest is not None and offset < earliest:
            raise OffsetGone(topic, offset, earliest)
        position = next((ring.first + at for at, record in enumerate(ring) if record.offset >= offset), ring.end)
        return FanOutReader(self, ring, position)

    def oldest(self, topic: Topic) -> FanOutReader:
        """A reader of ``topic`` from the oldest record that the ring holds."""
        return FanOutReader(self, self._rings[topic], self._rings[topic].first)

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
            ends = {topic: await self._bus.ends(topic) for topic in self.topics}
            self._reading = Reading(dict.fromkeys(self.topics, self._start), ends)
        async with self._bus.subscribe(self.topics, self._reading.starts()) as subscription:
            self.subscriptions += 1
            self.available = True
            if await subscription.caught_up():
                self._caught_up.set()
            async for records in subscription:
                self.bus_reads += 1
                for record in self._reading.take(records):
                    self._rings[record.topic].append(record, len(record.payload))
                if not self._caught_up.is_set() and await subscription.caught_up():
                    self._caught_up.set()
