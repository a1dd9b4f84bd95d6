"""The store as services use it: asynchronous, with every touch of the disk in a thread of its own."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from alerting.delivery import Delivery, Mark
from alerting.errors import StoreUnavailable
from alerting.incident import Tier
from alerting.sight import INCIDENTS_MAX, SENTENCES, Sight
from alerting.store import reads, writes
from alerting.store.bounds import Bounds, prune
from alerting.store.engine import WriterLock, mapped, prepare, reading_engine, writing_engine
from alerting.store.reads import Position, Standing, StoredIncident
from alerting.store.writes import Plan, Recorded
from telemetry_bus.findings import Finding

WRITE_SECONDS_MAX = 1.0
"""A commit takes milliseconds. Who waits for a page waits no longer than this for a disk that hangs."""
READ_SECONDS_MAX = 5.0

T = TypeVar("T")


class _Hand:
    """One thread, one engine, one thing at a time, each with a deadline. While a call hangs, others fail at once."""

    def __init__(self, path: Path, engine: sa.Engine, seconds_max: float, name: str) -> None:
        self._path = path
        self.engine = engine
        self._seconds_max = seconds_max
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._hanging: asyncio.Future[Any] | None = None

    async def call(self, action: str, work: Callable[[], T]) -> T:
        if self._hanging is not None and not self._hanging.done():
            raise StoreUnavailable(str(self._path), action, "an earlier call still hangs")
        self._hanging = None

        def mapped_work() -> T:
            with mapped(self._path, action):
                return work()

        running = asyncio.get_running_loop().run_in_executor(self._thread, mapped_work)
        running.add_done_callback(_looked_at)
        try:
            async with asyncio.timeout(self._seconds_max):
                return await asyncio.shield(running)
        except TimeoutError as error:
            self._hanging = running
            raise StoreUnavailable(str(self._path), action, f"no answer within {self._seconds_max} s") from error

    def close(self) -> None:
        self._thread.submit(self.engine.dispose)
        self._thread.shutdown(wait=False)


def _looked_at(done: asyncio.Future[Any]) -> None:
    """Its caller may have left already, cancelled or told that it hung: then nobody else asks what came of it."""
    if not done.cancelled():
        done.exception()


class StoreReader:
    """Reads a store that this process or another writes. Where it is away, methods raise :class:`StoreUnavailable`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reading = _Hand(path, reading_engine(path), READ_SECONDS_MAX, "alert-store-read")

    async def __aenter__(self) -> Self:
        """Open for reading. The store need not be there yet."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        self._reading.close()

    async def _read(self, action: str, question: Callable[[sa.Connection], T]) -> T:
        def work() -> T:
            with self._reading.engine.connect() as connection:
                return question(connection)

        return await self._reading.call(action, work)

    async def ready(self) -> None:
        """Raise :class:`StoreUnavailable` if the store cannot be read."""
        await self._read("be read", lambda connection: reads.newest(connection, 1, open_only=True))

    async def newest(self, limit: int, open_only: bool) -> list[StoredIncident]:
        """Incidents, newest first."""
        return await self._read("list incidents", lambda connection: reads.newest(connection, limit, open_only))

    async def one(self, identity: str) -> tuple[StoredIncident, list[dict[str, Any]]] | None:
        """One incident and its findings, or ``None``."""
        return await self._read("read an incident", lambda connection: reads.one(connection, identity))

    async def sight(self) -> Sight:
        """What Nantucket cannot see just now."""
        asked = tuple(SENTENCES), INCIDENTS_MAX
        return Sight.of(await self._read("read its sight", lambda connection: reads.firing(connection, *asked)))

    async def changed_since(self, revision: int, limit: int) -> tuple[int, list[StoredIncident]]:
        """The newest revision, and up to ``limit`` incidents changed after ``revision``: open ones go first."""
        return await self._read("list changes", lambda connection: reads.changed_since(connection, revision, limit))

    async def open_by_tier(self) -> dict[Tier, int]:
        """How many incidents are open, by tier."""
        return await self._read("count", reads.open_by_tier)


class Store(StoreReader):
    """The store as its one writer has it. Opening it takes the lock (:class:`~alerting.errors.StoreInUse`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = WriterLock(path)
        self._writing = _Hand(path, writing_engine(path), WRITE_SECONDS_MAX, "alert-store-write")
        self._prepared = False

    async def __aenter__(self) -> Self:
        """Take the lock and make the tables. A store that is away now is tried again with each later call."""
        try:
            await self._writing.call("be opened", self._prepare)
        except StoreUnavailable:
            return self
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close, and let the next writer in."""
        await super().__aexit__(*exc_info)
        self._writing.close()
        self._lock.release()

    def _prepare(self) -> None:
        self._lock.take()
        prepare(self._writing.engine, self.path)
        self._prepared = True

    async def _write(self, action: str, change: Callable[[sa.Connection], T]) -> T:
        def work() -> T:
            if not self._prepared:
                self._prepare()
            with self._writing.engine.begin() as connection:
                return change(connection)

        return await self._writing.call(action, work)

    async def position(self, topic: str) -> Position:
        """How far ``topic`` has been taken. It needs no more than reading."""
        if not self._prepared:
            await self._writing.call("be opened", self._prepare)
        return await self._read("read its position", lambda connection: reads.position(connection, topic))

    async def record(self, found: Sequence[Finding], position: Position, topic: str, plan: Plan) -> Recorded:
        """Take findings, each once for ever: incidents, deliveries, ids and position in one durable transaction."""
        return await self._write("record", lambda connection: writes.record(connection, found, position, topic, plan))

    async def rehearse(self, found: Sequence[Finding], plan: Plan) -> None:
        """Do all that :meth:`record` does and undo it, so that the first real one finds everything ready."""

        def undone(connection: sa.Connection) -> None:
            rehearsal = connection.begin_nested()
            writes.record(connection, found, Position(None, {}), "", plan)
            rehearsal.rollback()

        await self._write("rehearse", undone)

    async def mark(self, marks: Sequence[Mark]) -> list[str]:
        """Write what came of tries; return the ids that are not in the outbox yet."""
        return await self._write("mark deliveries", lambda connection: writes.mark(connection, marks))

    async def due(self, receiver: str, now: float, limit: int, ahead_seconds_max: float) -> list[Delivery]:
        """What is to be sent to ``receiver`` now; see :func:`alerting.store.reads.due`."""
        asked = (receiver, now, limit, ahead_seconds_max)
        return await self._read("read the outbox", lambda connection: reads.due(connection, *asked))

    async def retire(self, receivers: Sequence[str]) -> int:
        """Give up what waits for anybody but ``receivers``; return how many."""
        return await self._write("retire receivers", lambda connection: writes.retire(connection, receivers))

    async def standing(self) -> Standing:
        """Counts for the metrics."""
        return await self._read("count", reads.standing)

    async def prune(self, bounds: Bounds | None = None) -> int:
        """Bring the store nearer to its bounds; return how many rows went. Call it again until it is none."""
        kept = Bounds() if bounds is None else bounds
        return await self._write("prune", lambda connection: prune(connection, kept))
