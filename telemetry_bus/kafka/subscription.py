"""A reader of partitions that were assigned by hand. What blocks runs in a thread of its own, one look at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from telemetry_bus.bus import Record
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.kafka.driver import Consumer, Fetched, Spot
from telemetry_bus.kafka.order import Lane, TimeOrder
from telemetry_bus.runtime.clock import Clock

LOOK_SECONDS = 0.05
"""One look of the thread: a record ends it at once; closing and cancelling wait for it at most this long."""
LOOK_RECORDS = 256
COUNT_SECONDS = 10.0
"""How often a reader asks whether its topics are still there and have as many partitions: a millisecond for each."""
COUNT_TIMEOUT_SECONDS = 1.0


class KafkaSubscription:
    """Reads ``lanes`` through ``consumer``. Only :meth:`__aiter__` and :meth:`caught_up` are for readers."""

    def __init__(
        self,
        consumer: Consumer,
        lanes: Mapping[Spot, Lane],
        order: TimeOrder,
        *,
        url: str,
        clock: Clock,
        counts: Mapping[str, int],
        check_open: Callable[[], None],
        ends: Callable[[Sequence[Spot]], Awaitable[Mapping[Spot, int]]],
    ) -> None:
        self._consumer, self._lanes, self._order = consumer, lanes, order
        self._spots = {lane: spot for spot, lane in lanes.items()}
        self._url, self._clock, self._check_open, self._ends = url, clock, check_open, ends
        self._counts, self._counted_at = counts, clock.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nantucket-kafka-reader")
        self._look: asyncio.Future[None] | None = None

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        """Yield non-empty batches in about the order of the bus's time."""
        while True:
            await self._looked()
            if records := self._order.take():
                yield records
            else:
                self._check_open()
                self._look = asyncio.get_running_loop().run_in_executor(self._thread, self._fetch)

    async def _looked(self) -> None:
        """Wait for the look under way, which goes on if this is cancelled: what it brings is taken the next time."""
        if (look := self._look) is not None:
            try:
                await asyncio.shield(look)
            finally:
                if look.done():
                    self._look = None

    def _fetch(self) -> None:
        began = self._clock.monotonic()
        found = self._consumer.fetch(LOOK_SECONDS, LOOK_RECORDS)
        moved = self._put(found)
        now = self._clock.monotonic()
        self._order.waited(now - began, moved)
        if lanes := self._order.to_pause():
            self._consumer.pause([self._spots[lane] for lane in lanes])
        if lanes := self._order.to_resume():
            self._consumer.resume([self._spots[lane] for lane in lanes])
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            self._check_counts()

    def _put(self, found: Fetched) -> set[Lane]:
        moved = set()
        for name, partition, offset, milliseconds, _key, value in found.records:
            lane = self._lanes[name, partition]
            # A record without a value is none of ours: as empty bytes, intake refuses it with a reason, like any other.
            self._order.put(Record(*lane, offset, milliseconds / 1000, b"" if value is None else value))
            moved.add(lane)
        for lane in moved:
            end = self._consumer.end_seen(self._spots[lane])
            if end is not None:
                self._order.reached(lane, end)
        for spot, end in found.ends.items():
            lane = self._lanes[spot]
            self._order.reached(lane, end, fetched=True)
            moved.add(lane)
        return moved

    def _check_counts(self) -> None:
        for name, count in self._counts.items():
            now = self._consumer.partitions(name, COUNT_TIMEOUT_SECONDS)
            if now is not None and now != count:
                raise BusUnavailable(self._url, f"go on reading {name}", f"it has {now} partitions, and had {count}")

    async def caught_up(self) -> bool:
        """Whether everything that was on the bus when this was called has been yielded."""
        ends = await self._ends(list(self._lanes))
        return all(self._order.passed(self._lanes[spot]) >= end for spot, end in ends.items())

    async def close(self) -> None:
        """Stop reading."""
        if self._look is not None:
            with contextlib.suppress(Exception):  # nobody waits for it any more
                await self._look
        await asyncio.get_running_loop().run_in_executor(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)
