"""The way up from a node: live first, then the backlog; durable at the bus or in the spool when ``publish`` returns.

While the far end answers, a frame goes straight to it. The first failure, or no answer for seconds, means *away*:
every further frame goes to the spool, and a probe finds the far end again. Then critical findings go up first, then
live frames, and behind them the spool, merged, in ``telemetry.backlog``, at the pace that is granted. A short outage,
whose rows are still live for every reader, is simply caught up with, in order and in the rows' own topics.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from collectors.backlog import batches, frame_of
from collectors.ripcord import Ripcord
from collectors.spool import Depth, Spool
from collectors.spool_events import SpoolEvents
from collectors.spool_sender import SpoolSender, UpwardCounters
from collectors.under_way import UnderWay
from telemetry_bus.errors import BusUnavailable, FrameError, OutletFull
from telemetry_bus.frames import Frame, encode
from telemetry_bus.outlet import Outlet
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.sources import key_of
from telemetry_bus.topics import Topic

LIVE_SECONDS_MAX = 3.0
"""Gateways of two tiers hold a frame for 0.25 s each, a slow object store takes up to a second: twice that is away."""
DOUBT_SECONDS = 0.5
"""A page is to be out within a second: what is critical in a frame that has no answer by then is reported beside it."""
PROBE_FIRST_SECONDS = 0.25
PROBE_MAX_SECONDS = 2.0
"""A far end that comes back is found within two seconds; each of 37,500 nodes asks at a moment of its own."""
PROBE_ANSWER_SECONDS_MAX = 5.0
FINDINGS_SECONDS_MAX = 5.0
"""How long rows wait for the findings that go before them. They are a few, and take milliseconds each."""
CATCH_UP_SECONDS_MAX = 60.0
"""An outage up to this long is caught up with in order, as a broker that is started again leaves it: far below the
900 s for which readers take rows as live, and no baseline of a detector has a hole."""
CATCH_UP_BYTES_MAX = 16 * 1024**2
"""And if the spool has at most this: it is sent within a second, and live frames wait no longer."""
LAST_FRAMES = 64
"""So many are sent in one go, in some ten milliseconds."""
TELL_SECONDS = 10.0
TICK_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Outage:
    """``since`` is monotonic. ``clean``: nothing older waited in the spool when it began."""

    since: float
    clean: bool
    counted: float = field(init=False)

    def __post_init__(self) -> None:
        self.counted = self.since


class Upward:
    """Use it in ``async with``, around an outlet and a spool that are open. ``sleep`` is virtual in tests."""

    def __init__(
        self,
        outlet: Outlet,
        spool: Spool,
        clock: Clock,
        *,
        node: str,
        region: str | None = None,
        ripcord: Ripcord | None = None,
        simulated: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.counters = UpwardCounters()
        self.spool = spool
        self._outlet, self._clock, self._ripcord, self._sleep = outlet, clock, ripcord, sleep
        self._node, self._events = node, SpoolEvents(node, region, simulated)
        self._telling = asyncio.Lock()
        self._outage: _Outage | None = None
        self._work = asyncio.Event()
        self._live = UnderWay()
        self._sender = SpoolSender(outlet, spool, self.counters, self._live, lambda: self.away, sleep)
        self._appending = UnderWay()
        self._last = UnderWay()
        self._told_at = clock.monotonic()
        self._draining = False
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin; what the process before left in the spool is looked at, and sent."""
        await self._look_again()
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._tasks = [
                group.create_task(self._send_for_ever(), name="upward"),
                group.create_task(self._tick_for_ever(), name="upward-ticks"),
            ]
            stack.callback(lambda: [task.cancel() for task in self._tasks])
            self._stack = stack.pop_all()
        if self.depth.frames:
            self._work.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what is in the spool is sent by the next process."""
        await self._stack.__aexit__(kind, error, trace)

    @property
    def away(self) -> bool:
        """Whether the far end is away, as far as is known."""
        return self._outage is not None

    @property
    def depth(self) -> Depth:
        """What waits in the spool."""
        return self.spool.depth

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Durable when it returns: at the far end, or in the spool.

        Raises :class:`FrameError` for what nobody would ever take, and :class:`BusUnavailable` if the spool's disk
        fails as well: then nobody has it, and the same call may succeed later.
        """
        stamped = self.spool.moment()
        payload = encode(frame)
        if self._outage is not None:
            await self._last.none(LIVE_SECONDS_MAX)
        if self._ripcord is not None:
            self._ripcord.seen(topic, frame, away=self.away)
        key = key_of(frame)
        if self._outage is None and await self._sent_live(topic, payload, key):
            self.counters.frames_live += 1
            return
        async with self._appending:
            offset = await self.spool.append(
                topic, payload, key=key, rows=frame.rows, simulated=_simulated(frame), stamped=stamped
            )
        self.counters.frames_spooled += 1
        self._work.set()
        if self._ripcord is not None:
            self.spool.looked_at(topic, offset)

    async def _sent_live(self, topic: Topic, payload: bytes, key: str) -> bool:
        doubt = asyncio.get_running_loop().call_later(DOUBT_SECONDS, self._doubt)
        try:
            async with self._live, asyncio.timeout(LIVE_SECONDS_MAX):
                await self._outlet.publish(topic, [payload], key)
        except (BusUnavailable, TimeoutError) as error:
            self._went_away(error)
            return False
        finally:
            doubt.cancel()
        return True

    def _doubt(self) -> None:
        if self._ripcord is not None:
            self._ripcord.doubt()

    def _went_away(self, why: Exception) -> None:
        if self._outage is not None:
            return
        _log.warning("frames go to the spool from now on: %s", str(why) or f"no answer within {LIVE_SECONDS_MAX:g} s")
        self.counters.outages += 1
        self._outage = _Outage(self._clock.monotonic(), not self.depth.frames)
        self._doubt()
        self._work.set()

    async def _send_for_ever(self) -> None:
        while True:
            if self._outage is not None:
                await self._come_back(self._outage)
            elif self.depth.frames:
                await self._drain()
            else:
                self._work.clear()
                await self._work.wait()

    async def _come_back(self, outage: _Outage) -> None:
        """Return once the far end is there again, the findings are up, and a short outage is caught up with."""
        await self._tell_durably(away=True)
        wait = PROBE_FIRST_SECONDS
        while not (await self._there() and await self._caught_up(outage)):
            await self._sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, PROBE_MAX_SECONDS)

    def _is_back(self, outage: _Outage) -> bool:
        self._count_away()
        _log.warning("the far end is back after %.1f s", self._clock.monotonic() - outage.since)
        self._outage = None
        return True

    async def _there(self) -> bool:
        """Probe, with what there is to tell: the depth of the spool. Then the findings, before anything else."""
        self.counters.probes += 1
        try:
            async with asyncio.timeout(PROBE_ANSWER_SECONDS_MAX):
                await self._tell_now()
        except OutletFull as full:
            await self._sleep(full.retry_after_seconds * random.uniform(1.0, 1.5))
            return False
        except FrameError as error:
            _log.error("what the spool tells of itself is refused for good: %s", error)  # it is there: it has answered
        except (BusUnavailable, TimeoutError):
            return False
        await self._publish_findings()
        return True

    async def _publish_findings(self) -> None:
        """What is not on the bus yet; what nobody takes in time is tried again later, and holds up no row."""
        if self._ripcord is not None and self._ripcord.unpublished:
            with suppress(TimeoutError):
                async with asyncio.timeout(FINDINGS_SECONDS_MAX):
                    await self._ripcord.publish_kept()

    async def _caught_up(self, outage: _Outage) -> bool:
        """Send what a short outage has left, in order and as live rows; after a long one live frames go first.

        For the last of it who publishes is held for a moment, so that nothing overtakes and there is an end.
        """
        while self.depth.frames > LAST_FRAMES:
            if not self._can_catch_up(outage):
                return self._is_back(outage)
            if not await self._sender.sent_as(None):
                return False
        async with self._last:
            while True:
                await self._appending.none()
                if not self.depth.frames or not self._can_catch_up(outage):
                    return self._is_back(outage)
                if not await self._sender.sent_as(None):
                    return False

    def _can_catch_up(self, outage: _Outage) -> bool:
        short = self._clock.monotonic() - outage.since <= CATCH_UP_SECONDS_MAX
        return outage.clean and short and self.depth.bytes <= CATCH_UP_BYTES_MAX

    async def _drain(self) -> None:
        """Send the backlog until there is none or the far end is away."""
        if not self._draining:
            self._draining = True
            _log.warning("the spool is sent: %d frames", self.depth.frames)
        wait = PROBE_FIRST_SECONDS
        while self.depth.frames and self._outage is None:
            if await self._sender.sent_as(Topic.BACKLOG):
                wait = PROBE_FIRST_SECONDS
                continue
            await self._sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, PROBE_MAX_SECONDS)
        if self._outage is None:
            self._draining = False
            await self._tell_durably(away=False)

    async def _tick_for_ever(self) -> None:
        while True:
            await self._sleep(TICK_SECONDS)
            self._count_away()
            try:
                await self._tick()
            except BusUnavailable as error:
                _log.warning("the spool's disk fails: %s", error)
            except FrameError as error:
                _log.error("what the spool tells of itself is refused for good: %s", error)

    async def _tick(self) -> None:
        await self.spool.expire()
        await self.spool.remember_looked()
        if self._ripcord is not None:
            self._ripcord.tick(self._clock.now(), away=self.away)
        if self.away:
            return
        await self._publish_findings()
        if self._draining and self._clock.monotonic() - self._told_at >= TELL_SECONDS:
            await self._tell_durably(away=False)
        await self._tell_dropped()

    def _count_away(self) -> None:
        if self._outage is not None:
            now = self._clock.monotonic()
            self.counters.away_seconds += now - self._outage.counted
            self._outage.counted = now

    async def _tell_dropped(self) -> None:
        dropped = self.spool.take_dropped()
        try:
            for simulated in list(dropped):
                await self._publish_event(lambda now, s=simulated: self._events.dropped(dropped[s], s, now))  # type: ignore[misc]
                del dropped[simulated]
        finally:
            self.spool.dropped.update(dropped)  # what could not be told is told later

    async def _tell_durably(self, *, away: bool) -> None:
        """Tell the depth, at the far end or in the spool; neither a disk that fails too nor a far end that takes no
        event must end the sending."""
        self._told_at = self._clock.monotonic()
        try:
            await self._publish_event(lambda now: self._events.depth(self.depth, away, now))
        except (BusUnavailable, FrameError) as error:
            _log.warning("the spool's depth is not told: %s", error)

    async def _publish_event(self, make: Callable[[float], Frame]) -> None:
        async with self._telling:
            with self._events.unless_lost(make(self._clock.now())) as frame:
                await self.publish(Topic.EVENTS, frame)

    async def _tell_now(self) -> None:
        """Tell the depth at the far end or not at all."""
        async with self._telling:
            with self._events.unless_lost(self._events.depth(self.depth, True, self._clock.now())) as frame:
                await self._outlet.publish(Topic.EVENTS, [encode(frame)], self._node)

    async def _look_again(self) -> None:
        """Let the detectors see what was spooled just before a kill."""
        if self._ripcord is None:
            return
        try:
            entries = await self.spool.not_looked_at((Topic.TRAIN, Topic.EVENTS))
        except (BusUnavailable, TimeoutError) as error:
            _log.warning("what the process before has spooled is not looked at: %s", error)
            return
        for batch in batches(entries):
            frame = frame_of(batch, self.spool.moment())
            if frame is not None:
                self._ripcord.seen(batch.topic, frame, away=True)
            for entry in batch.entries:
                self.spool.looked_at(entry.topic, entry.offset)


def _simulated(frame: Frame) -> bool:
    if not frame.rows or "simulated" not in frame.batch.schema.names:
        return False
    return bool(frame.batch.column("simulated")[0].as_py())
