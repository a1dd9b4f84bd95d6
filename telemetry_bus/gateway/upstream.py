"""The way up: many publishes under way at once, live frames before the backlog, and what is known of the far end.

Publishes begin in the order in which batches came, and both a bus and a link keep the order in which publishes began:
rows of one key stay in order without waiting for each other's answers, except where the far end fails in between.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable

from telemetry_bus.errors import BusError, BusUnavailable, FrameRefused, OutletFull
from telemetry_bus.gateway.counters import GatewayCounters
from telemetry_bus.gateway.entry import Entry
from telemetry_bus.gateway.merge import Batch
from telemetry_bus.outlet import Outlet
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

PUBLISHES_MAX = 1_024
"""Under way at once: 600 racks' frames a second in two topics, at a log that takes half a second to answer."""
UNDER_WAY_BYTES_MAX = 48 * 1024 * 1024
"""What the top of Leviathan's tree receives in half a second (85 MB a second), and below the 64 MiB that a Kafka bus
takes under way. What is beyond waits here, where live frames pass the backlog."""
BACKLOG_PUBLISHES_MAX = 64
"""So many of these at most are backlog: a live frame never waits behind more of it than that."""
PUBLISH_SECONDS_MAX = 8.0
"""Below the ten seconds for which a sender waits: it hears a reason instead of nothing."""
AWAY_SECONDS = 0.5
"""After a failure frames are put off for about so long, then the next ones are the probe."""
SAID_AGAIN_SECONDS = 10.0
"""Where some partitions answer and others do not, it comes and goes with each frame: the log has it once in a while."""
STALLED_SECONDS = 3.0
"""A far end that has acknowledged nothing for so long while something was under way is away, whatever it says later."""

_log = logging.getLogger(__name__)

Done = Callable[[Entry, Exception | None], None]


class Upstream:
    """Publishes batches; ``done`` is told what became of each entry."""

    def __init__(self, outlet: Outlet, clock: Clock, counters: GatewayCounters, done: Done) -> None:
        self._outlet, self._clock, self._counters, self._done = outlet, clock, counters, done
        self._live: deque[Batch] = deque()
        self._backlog: deque[Batch] = deque()
        self._began: dict[int, float] = {}
        self._next = 0
        self._backlog_under_way = self._bytes_under_way = 0
        self._succeeded_at = clock.monotonic()
        self._away_until = 0.0
        self._why = ""
        self._said_at, self._is_said = -SAID_AGAIN_SECONDS, False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, batch: Batch, tasks: asyncio.TaskGroup) -> None:
        """Send ``batch`` up as soon as there is a place for it. What waits is bounded by who lets frames in."""
        (self._backlog if batch.topic is Topic.BACKLOG else self._live).append(batch)
        self._idle.clear()
        self._start(tasks)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    def away(self) -> str | None:
        """Why frames are put off just now; ``None`` while they are taken."""
        now = self._clock.monotonic()
        if now < self._away_until:
            return self._why
        oldest = next(iter(self._began.values()), now)
        silent = now - max(oldest, self._succeeded_at)
        if silent > STALLED_SECONDS:
            return f"{self._outlet.url} has acknowledged nothing for {silent:.1f} s"
        return None

    def failed(self, error: Exception) -> None:
        """Note that the far end is away."""
        now = self._clock.monotonic()
        if not self._why and now - self._said_at >= SAID_AGAIN_SECONDS:
            self._said_at, self._is_said = now, True
            _log.warning("frames are put off: %s", error)
        self._counters.upstream_failures += 1
        self._why = str(error)
        self._away_until = now + AWAY_SECONDS * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note that the far end has answered."""
        if self._is_said:
            _log.warning("%s takes frames again", self._outlet.url)
            self._is_said = False
        self._why, self._away_until, self._succeeded_at = "", 0.0, self._clock.monotonic()

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        while len(self._began) < PUBLISHES_MAX and self._bytes_under_way < UNDER_WAY_BYTES_MAX:
            if self._live:
                batch = self._live.popleft()
            elif self._backlog and self._backlog_under_way < BACKLOG_PUBLISHES_MAX:
                batch = self._backlog.popleft()
                self._backlog_under_way += 1
            else:
                return
            self._bytes_under_way += len(batch.payload)
            self._next += 1
            self._began[self._next] = self._clock.monotonic()
            tasks.create_task(self._publish(batch, self._next, tasks))

    async def _publish(self, batch: Batch, number: int, tasks: asyncio.TaskGroup) -> None:
        try:
            error = await self._try(batch)
        finally:
            del self._began[number]
            self._bytes_under_way -= len(batch.payload)
            self._backlog_under_way -= batch.topic is Topic.BACKLOG
        if isinstance(error, FrameRefused) and len(batch.entries) > 1:
            for entry in batch.entries:  # which of them it is: each one alone
                self.submit(Batch(batch.topic, batch.key, entry.payload, (entry,)), tasks)
        else:
            for entry in batch.entries:
                self._done(entry, error)
        self._start(tasks)
        if not (self._began or self._live or self._backlog):
            self._idle.set()

    async def _try(self, batch: Batch) -> Exception | None:
        try:
            async with asyncio.timeout(PUBLISH_SECONDS_MAX):
                await self._outlet.publish(batch.topic, [batch.payload], batch.key)
        except (FrameRefused, OutletFull) as error:
            self.succeeded()  # it is there: it has answered
            return error
        except TimeoutError:
            waited = f"no answer within {PUBLISH_SECONDS_MAX:g} s"
            error_ = BusUnavailable(self._outlet.url, "take frames", waited)
            self.failed(error_)
            return error_
        except BusError as error:
            self.failed(error)
            return error if error.retryable else BusUnavailable(self._outlet.url, "take frames", error)
        self.succeeded()
        self._counters.frames_out[batch.topic] += 1
        self._counters.rows_out[batch.topic] += sum(entry.frame.rows for entry in batch.entries)
        self._counters.bytes_out += len(batch.payload)
        return None
