"""The loop of a node: read every source on a grid, make frames, and hand them to the bus.

Sampling and publishing are decoupled by a small queue: a sample is never late because a publish takes its second, or
because bus and spool are away both. What the bound forces out is counted, and told as a ``rows_dropped`` event.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, Self

from collectors.errors import FieldFailure, SourceUnavailable
from collectors.frame_queue import Dropped, FrameQueue, Waiting
from collectors.framing import Framer
from collectors.source import EventRow, Source, SourceReading
from telemetry_bus import Frame, FrameError, Topic
from telemetry_bus.publisher import until_durable
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind

Publish = Callable[[Topic, Frame], Awaitable[object]]
"""Sends a frame; it is durable when the call returns. Raises :class:`~telemetry_bus.BusUnavailable` where it is not and
may be soon: with a spool behind it, that takes a bus and a disk that are away both."""

SENDING_MAX = 16
"""Frames that are on their way at once. A gateway answers once it has merged and its bus has written, some 300 ms: ten
readings a second are three or four, with events and links twice as many."""
HZ_MAX = 10.0
"""NVML's own averages are no faster."""
ROWS_IN_LOOP_MAX = 1_024
"""A real node's rows are made into frames at once: 8 GPUs take half a millisecond, and a thread as much again to wake.
A simulated fleet's, which take longer, are made in a thread."""
URGENT_SECONDS_MIN = 0.05
"""However urgent it is, a source is read at most twenty times a second: a kernel that logs a thousand lines a second is
read in batches."""
OPEN_AGAIN_SECONDS = 60.0
"""How often a source that is not there is tried again: a driver that comes up late is read within a minute."""
FLUSH_SECONDS = 4.0
"""How long a closing agent tries to send what waits. A bus that has just gone away is given up for the spool in 3 s."""


def _zero_failures() -> "Counter[tuple[str, FieldFailure]]":
    return Counter({("*", reason): 0 for reason in FieldFailure})


@dataclass(slots=True)
class AgentCounters:
    """What ``/metrics`` shows of an agent. All only grow."""

    readings: int = 0
    ticks_missed: int = 0
    """Grid points that passed while a reading was still under way."""
    frames_sent: int = 0
    rows_sent: int = 0
    frames_dropped: int = 0
    rows_dropped: int = 0
    frames_refused: int = 0
    """Frames that no reader would take (too large): a fault of ours, seen and not sent."""
    publish_retries: int = 0
    field_failures: "Counter[tuple[str, FieldFailure]]" = field(default_factory=_zero_failures)
    """By (metric, reason); the metric ``*`` stands for a whole reading and starts at zero. That of a metric comes with
    its first failure: all of them would be a thousand series a node."""


class NodeAgent:
    """The loop of ``node``. Use it as ``async with NodeAgent(...)``, or ``await NodeAgent(...).run()``.

    ``hz`` is readings a second of each source, ``labels`` say where the node stands. Opening raises what the opening of
    one of ``sources`` raises; one of ``optional`` that cannot be opened is named in :attr:`unavailable` and tried
    again. ``sleep`` is ``asyncio.sleep`` unless time is virtual.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        publish: Publish,
        clock: Clock,
        *,
        node: str,
        optional: Sequence[Source] = (),
        region: str | None = None,
        hz: float = 1.0,
        labels: Mapping[str, str] = MappingProxyType({}),
        queue: FrameQueue | None = None,
        sending: int = SENDING_MAX,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        if not 0 < hz <= HZ_MAX:
            raise ValueError(f"hz = {hz}: expected more than 0 and at most {HZ_MAX:g} readings a second")
        self.node = node
        self.labels = labels
        self.counters = AgentCounters()
        self.unavailable: dict[str, str] = {}
        """Of the optional sources those that cannot be read now, by name, with what to do."""
        self._sources, self._optional = tuple(sources), tuple(optional)
        self._publish, self._clock, self._sleep = publish, clock, sleep
        self._period = 1.0 / hz
        self._framer = Framer(region)
        self._queue = FrameQueue() if queue is None else queue
        self._sending = asyncio.Semaphore(sending)
        self._flowing = asyncio.Event()
        """Clear while a frame has to be tried again: what follows it waits."""
        self._flowing.set()
        self._untold: Counter[bool] = Counter()
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def queue_depth(self) -> int:
        """How many frames wait for the bus."""
        return len(self._queue)

    async def run(self) -> None:
        """Work until cancelled."""
        async with self:
            await asyncio.Event().wait()

    async def __aenter__(self) -> Self:
        """Open every source and begin to read."""
        async with AsyncExitStack() as stack:
            for source in self._sources:
                await stack.enter_async_context(source)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._tasks = [group.create_task(self._sample(source)) for source in self._sources]
            tried = [asyncio.Event() for _ in self._optional]
            self._tasks += [group.create_task(self._attend(*each)) for each in zip(self._optional, tried, strict=True)]
            self._sender = group.create_task(self._send())
            for event in tried:
                await event.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading, send what waits if the bus takes it within :data:`FLUSH_SECONDS`, close the sources."""
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._drained()
        except TimeoutError:
            self._sender.cancel()
            # The far end counts their frames as missing; here they are counted too.
            self._count(self._queue.clear())
        finally:
            self._sender.cancel()
            await self._stack.__aexit__(kind, error, trace)

    async def _attend(self, source: Source, tried: asyncio.Event) -> None:
        """Read a source whenever it is there."""
        while True:
            try:
                async with source:
                    self.unavailable.pop(source.name, None)
                    tried.set()
                    await self._sample(source)
            except SourceUnavailable as error:
                self.unavailable[source.name] = str(error)
            tried.set()
            await self._sleep(OPEN_AGAIN_SECONDS)

    async def _sample(self, source: Source) -> None:
        period = self._period if source.period_seconds is None else source.period_seconds
        start, slot, on_grid = self._clock.monotonic(), 0, True
        while True:
            now = self._clock.now()
            reading = await source.read(now)
            self._take(reading, await self._framed(reading, now))
            reached = math.floor((self._clock.monotonic() - start) / period) + 1
            following = slot + 1 if on_grid else slot
            self.counters.ticks_missed += max(reached - following, 0)
            slot = max(reached, following)
            seconds = start + slot * period - self._clock.monotonic()
            if not on_grid and seconds > URGENT_SECONDS_MIN:
                await self._sleep(URGENT_SECONDS_MIN)  # however urgent it is again
                seconds -= URGENT_SECONDS_MIN
            on_grid = not await self._pause(source.urgent, seconds)

    async def _pause(self, urgent: asyncio.Event | None, seconds: float) -> bool:
        """Wait for the next grid point, or until the source wants to be read at once (then it is True)."""
        if urgent is None:
            await self._sleep(seconds)
            return False
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(self._sleep(seconds)), group.create_task(urgent.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
        was_urgent = urgent.is_set()
        urgent.clear()
        return was_urgent

    async def _framed(self, reading: SourceReading, now: float) -> list[tuple[Topic, Frame]]:
        rows = sum(0 if part is None else part.rows for part in (reading.gpus, reading.links)) + len(reading.events)
        if rows <= ROWS_IN_LOOP_MAX:
            return self._frames(reading, now)
        return await asyncio.to_thread(self._frames, reading, now)

    def _frames(self, reading: SourceReading, now: float) -> list[tuple[Topic, Frame]]:
        told = [self._placed(event) for event in reading.events]
        events = [(Topic.EVENTS, frame) for frame in self._framer.event_frames(told, now)]
        rows = [] if reading.gpus is None else self._framer.gpu_frames(reading.gpus, now)
        links = [] if reading.links is None else self._framer.link_frames(reading.links, now)
        return events + [(Topic.GPU, frame) for frame in rows] + [(Topic.LINKS, frame) for frame in links]

    def _placed(self, event: EventRow) -> EventRow:
        """This node's own inventory, with where it stands."""
        if event.kind is not EventKind.NODE_INVENTORY or event.node != self.node or not self.labels:
            return event
        return replace(event, detail={**event.detail, "labels": dict(self.labels)})

    def _take(self, reading: SourceReading, frames: Sequence[tuple[Topic, Frame]]) -> None:
        self.counters.readings += 1
        self.counters.field_failures.update(reading.failures)
        for topic, frame in frames:
            self._count(self._queue.put(topic, frame))

    def _count(self, dropped: Sequence[Dropped]) -> None:
        for gone in dropped:
            self.counters.frames_dropped += 1
            self.counters.rows_dropped += gone.rows
            self._untold[gone.simulated] += gone.rows

    async def _send(self) -> None:
        """Send what waits, in order; the next does not wait for the answer to the one before, unless that failed."""
        before = asyncio.Event()
        before.set()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._sending.acquire()
                await self._flowing.wait()
                sent = asyncio.Event()
                group.create_task(self._send_one(await self._queue.take(), before, sent))
                before = sent

    async def _send_one(self, taken: Waiting, before: asyncio.Event, sent: asyncio.Event) -> None:
        """Send one frame; a second try waits until all ``before`` it have been sent."""
        topic, frame, _ = taken

        async def publish(stamped: Frame) -> None:
            if stamped is not frame:
                await before.wait()
            await self._publish(topic, stamped)

        try:
            await until_durable(publish, frame, self._clock, self._sleep, self._note_retry)
        except FrameError:
            self.counters.frames_refused += 1
        else:
            self.counters.frames_sent += 1
            self.counters.rows_sent += frame.rows
        self._tell_dropped()
        self._queue.done(taken)
        await before.wait()
        sent.set()
        self._flowing.set()
        self._sending.release()

    def _note_retry(self) -> None:
        self._flowing.clear()
        self.counters.publish_retries += 1

    def _tell_dropped(self) -> None:
        if not self._untold:
            return
        untold, self._untold = self._untold, Counter()
        events = [
            EventRow(
                EventKind.ROWS_DROPPED,
                self.node,
                f"{self.node}: {rows} rows were dropped: neither the bus nor the spool took them",
                simulated,
                detail={"rows": rows, "source": "gpu"},
            )
            for simulated, rows in untold.items()
        ]
        for frame in self._framer.event_frames(events, self._clock.now()):
            self._count(self._queue.put(Topic.EVENTS, frame))

    async def _drained(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._sender.done():
            await self._queue.drained()
