"""The embedded bus as the rest of the system sees it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from telemetry_bus.bus import WHOLE, AtOffset, AtTime, Earliest, Positions, Record, Slice, Start
from telemetry_bus.embedded.folder import prepare
from telemetry_bus.embedded.store import DEFAULT_LIMITS, LogFile, TopicLimit
from telemetry_bus.embedded.wake import Knocker
from telemetry_bus.embedded.writer import Writer
from telemetry_bus.errors import BusClosed, BusError, InvalidPayload
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

LOOK_SECONDS = 0.005
"""How often a reader looks at the shared counter: what a publish in another process waits for at most."""
RECHECK_SECONDS = 1.0
"""How often a reader looks at the log itself, in case that a publisher was killed before it could knock."""
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX
"""No reader would take a larger one, and one publisher's mistake must not fail a group that others share."""
OFFSET_END = 1 << 63
"""SQLite's integers end there."""
PARTITION = 0
"""The only one."""
READ_THREADS = 2
"""A read is short; two threads keep a long catch-up from delaying the live readers of the same process."""

T = TypeVar("T")


class EmbeddedBus:
    """A log in a folder of this machine, for any number of its processes."""

    def __init__(self, folder: str | Path, clock: Clock, limits: Mapping[Topic, TopicLimit] = DEFAULT_LIMITS) -> None:
        self.folder = Path(folder)
        self.url = self.folder.absolute().as_uri()
        self._clock, self._limits = clock, limits
        self._writer: Writer | None = None
        self._readers: _Readers | None = None
        self._knocker: Knocker | None = None
        self._published = _Signal()

    async def __aenter__(self) -> Self:
        """Open the log, and make it if there is none. Raises BusUnavailable or UnsuitableFolder."""
        writer = Writer(self.folder, self.url, self._limits, self._clock)
        await asyncio.to_thread(self._open, writer)
        self._writer, self._readers = writer, _Readers(self.folder, self.url)
        return self

    def _open(self, writer: Writer) -> None:
        prepare(self.folder)
        knocker = Knocker(self.folder)
        try:
            writer.start()
        except BusError:
            knocker.close()
            raise
        self._knocker = knocker

    async def __aexit__(self, *exc_info: object) -> None:
        """Write what waits and close."""
        writer, readers, knocker = self._writer, self._readers, self._knocker
        self._writer = self._readers = self._knocker = None
        if writer is not None:
            await asyncio.to_thread(writer.stop)
        if readers is not None:
            await asyncio.to_thread(readers.close)
        if knocker is not None:
            knocker.close()

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Append ``payloads`` and return their offsets once they are on disk, in one sync with whatever else waits.

        There is one partition, whatever the ``key``.
        """
        del key
        if self._writer is None:
            raise BusClosed(self.url, f"publish to {topic}")
        _check_payloads(topic, payloads)
        offsets = await self._writer.append(topic, payloads)
        self._published.set()
        return offsets

    async def commit(self, group: str, positions: Positions) -> None:
        """Remember durably how far ``group`` has come."""
        if self._writer is None:
            raise BusClosed(self.url, f"commit for {group}")
        await self._writer.remember(group, _offsets_in(group, positions))

    async def committed(self, group: str) -> Positions:
        """How far ``group`` has come."""
        offsets = await self._read(lambda log: log.remembered(group))
        return {topic: {PARTITION: offset} for topic, offset in offsets.items()}

    async def identity(self) -> str:
        """Which log this is: the UUID that it got when it was made."""
        return await self._read(lambda log: log.identity())

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """The offset that follows the newest record of ``topic``, in its one partition."""
        return {PARTITION: await self._read(lambda log: log.end(topic))}

    async def check(self, seconds_max: float) -> bool:
        """Look through the log's file for damage; False if it was not all seen in time. Raises UnreadableLog."""
        end = self._clock.monotonic() + seconds_max
        return await self._read(lambda log: log.check_pages(lambda: self._clock.monotonic() > end))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AsyncIterator["EmbeddedSubscription"]:
        """Read ``topics`` in the one order of the log. It has one partition, which every slice reads."""
        del part
        starts = start if isinstance(start, Mapping) else dict.fromkeys(topics, start)
        first = {topic: await self._first(topic, starts[topic]) for topic in topics}
        yield EmbeddedSubscription(self, first)

    async def _first(self, topic: Topic, start: Start) -> int:
        match start:
            case AtOffset(offset, partitions):
                return offset if partitions is None else partitions.get(PARTITION, 0)
            case AtTime(time):
                return await self._read(lambda log: log.at_time(topic, time))
            case Earliest():
                return await self._read(lambda log: log.earliest(topic))
            case _:
                return await self._read(lambda log: log.log_end())

    async def _read(self, work: Callable[[LogFile], T]) -> T:
        if self._readers is None:
            raise BusClosed(self.url, "read")
        return await self._readers.run(work)

    async def _news(self, seen: int) -> int:
        """Return the counter as soon as it differs from ``seen``, or after :data:`RECHECK_SECONDS`."""
        deadline = self._clock.monotonic() + RECHECK_SECONDS
        while (
            self._knocker is not None
            and (count := self._knocker.count()) == seen
            and self._clock.monotonic() < deadline
        ):
            await self._published.wait(LOOK_SECONDS)
        if self._knocker is None:
            raise BusClosed(self.url, "read")
        return count


def _offsets_in(group: str, positions: Positions) -> dict[Topic, int]:
    offsets = {topic: offsets[PARTITION] for topic, offsets in positions.items() if offsets}
    if beyond := {topic: offset for topic, offset in offsets.items() if not 0 <= offset < OFFSET_END}:
        raise ValueError(f"expected offsets from 0 to 2^63 - 1 for the group {group!r}, found {beyond}")
    return offsets


def _check_payloads(topic: Topic, payloads: Sequence[bytes]) -> None:
    for position, payload in enumerate(payloads):
        if not isinstance(payload, bytes):
            raise InvalidPayload(topic, position, f"expected bytes, found {type(payload).__name__}")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise InvalidPayload(topic, position, f"it has {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} are taken")


class EmbeddedSubscription:
    """A position in the log. ``first`` maps each topic to the first offset that is wanted of it."""

    def __init__(self, bus: EmbeddedBus, first: Mapping[Topic, int]) -> None:
        self._bus, self._first = bus, first
        self._cursor = min(first.values())

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        """Yield non-empty batches, oldest first."""
        seen = -1
        while True:
            knocker = self._bus._knocker
            count = seen if knocker is None else knocker.count()
            before = self._cursor
            records = await self._fetch()
            if records:
                yield records
            elif self._cursor == before:
                seen = await self._bus._news(count)

    async def _fetch(self) -> list[Record]:
        records, self._cursor = await self._bus._read(lambda log: log.read(self._first, self._cursor))
        return [record for record in records if record.offset >= self._first[record.topic]]

    async def caught_up(self) -> bool:
        """Whether everything that was on the bus when this was called has been yielded."""
        ends = [await self._bus.ends(topic) for topic in self._first]
        return self._cursor >= max(end[PARTITION] for end in ends)


class _Readers:
    """Threads with a connection each."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url
        self._local = threading.local()
        self._logs: list[LogFile] = []
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="nantucket-log-reader")

    async def run(self, work: Callable[[LogFile], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, work)

    def _run(self, work: Callable[[LogFile], T]) -> T:
        log = getattr(self._local, "log", None)
        if log is None:
            log = self._local.log = LogFile(self._folder, self._url)
            self._logs.append(log)
        log.check_in_place()
        return work(log)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        for log in self._logs:
            log.close()


class _Signal:
    """Wakes every waiter of this process at once. A wait costs a timer and nothing else: readers wait all the time."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for waiter in waiting:
            _end(waiter)

    async def wait(self, timeout_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_seconds, _end, waiter)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)


def _end(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
