"""The detectors as faust agents: the only file that knows faust.

``bus.subscribe`` feeds one faust channel for each detector, in the order of the bus; an agent takes an event, lets its
detector look, publishes what it found, and acknowledges. What is acknowledged by all agents is committed. Faust's own
consumer, with its rebalances, tables and changelogs, is not used, and no broker is needed for it to run.

After a crash the service reads back :data:`WARM_SECONDS` before the committed position, so that detectors know their
baselines again. What they say meanwhile was said before; from the committed position on they speak.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import faust
from faust.app.base import BootStrategy

from detectors.detector import Detector, ReaderHealth, reader_health
from telemetry_bus.bus import AtOffset, AtTime, Bus, Record, Start, Subscription
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.findings import Finding, findings_frame
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.intake import Intake
from telemetry_bus.publisher import publish_until_durable
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TELEMETRY, Topic

GROUP = "detect"
WARM_SECONDS = 600.0
"""What is read back at a start: a loss baseline of some hundred steps of a few seconds each."""
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
"""Payloads handed to agents and not yet acknowledged. Faust bounds channels in events only: the feed counts bytes."""
CHANNEL_EVENTS_MAX = 4_096
COMMIT_SECONDS = 1.0
GAP_SECONDS = 5.0
"""Ticks come every second. Where they stop for longer nobody watched, and silence in that time proves nothing."""
REFUSED_AGAIN_SECONDS = 0.5

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class AgentStats:
    """Counters for ``/metrics``, by detector where they are mappings."""

    frames: int = 0
    ticks: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    lag_seconds: dict[Topic, float] = field(default_factory=dict)
    in_flight_bytes: int = 0
    warm: bool = False


@dataclass(slots=True)
class _Event:
    """One record on its way through the agents; ``pending`` agents have not yet acknowledged it."""

    record: Record
    frame: Frame | None
    health: ReaderHealth | None
    live: bool
    pending: int


class _NoBroker(BootStrategy):
    """Starts agents and nothing else of faust."""

    enable_kafka = False
    enable_kafka_consumer = False
    enable_kafka_producer = False
    enable_web = False
    enable_sensors = False


class _App(faust.App):
    BootStrategy = _NoBroker

    def _create_directories(self) -> None:
        """Make no folders for tables: there are none, and the working directory is not ours."""


class DetectorService:
    """Runs ``detectors`` over ``bus`` until it is cancelled: ``await service.run()`` inside a task group."""

    def __init__(
        self, bus: Bus, detectors: Sequence[Detector], clock: Clock, dead_letters: DeadLetters, source: str
    ) -> None:
        self._bus, self._detectors, self._clock, self._dead = bus, tuple(detectors), clock, dead_letters
        self._maker = FrameMaker(source)
        self._channels: dict[str, Any] = {}
        self._events: deque[_Event] = deque()
        self._done: dict[Topic, int] = {}
        self._settled = asyncio.Event()
        self._watching_since: float | None = None
        self._last_tick: float | None = None
        self.intake = Intake()
        self.caught_up = asyncio.Event()
        """Set once the detectors have read everything that was there when they started."""
        self.stats = AgentStats(
            findings={d.name: 0 for d in self._detectors}, errors={d.name: 0 for d in self._detectors}
        )

    @property
    def topics(self) -> tuple[Topic, ...]:
        """All telemetry, wanted or not: a source counts frames over all topics, and one left out looks like loss."""
        return (*TELEMETRY, Topic.TICKS)

    async def run(self) -> None:
        """Feed the agents and commit what they have done."""
        app = await asyncio.to_thread(self._make_app)
        await app.start()
        app.flow_control.resume()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed_for_ever())
                tasks.create_task(self._commit_for_ever())
        finally:
            await app.stop()
            _close_spare_loop(app)

    def _make_app(self) -> Any:
        app = _App("nantucket-detect", autodiscover=False, web_enabled=False)
        for detector in self._detectors:
            channel = app.channel(maxsize=CHANNEL_EVENTS_MAX)
            app.agent(channel, name=f"detectors.{detector.name}")(self._agent(detector))
            self._channels[detector.name] = channel
        return app

    def _agent(self, detector: Detector) -> Any:
        async def look(stream: Any) -> None:
            async for event in stream:
                await self._look(detector, event)

        return look

    async def _look(self, detector: Detector, event: _Event) -> None:
        """One event for one detector. Faust drops the event of an agent that raises, so this one never does."""
        try:
            findings = detector.observe(event.frame) if event.health is None and event.frame is not None else ()
            if event.health is not None:
                findings = detector.tick(event.record.time, event.health)
        except Exception:  # noqa: BLE001  whatever a detector does wrong, its agent and the others go on
            self.stats.errors[detector.name] += 1
            _log.exception("detector %s failed on %s offset %d", detector.name, event.record.topic, event.record.offset)
            findings = ()
        if findings and event.live:
            await self._publish(detector.name, findings)
        event.pending -= 1
        if not event.pending:
            self._settled.set()

    async def _publish(self, name: str, findings: Sequence[Finding]) -> None:
        self.stats.findings[name] += len(findings)
        now = self._clock.now()
        await publish_until_durable(self._bus, Topic.FINDINGS, findings_frame(self._maker, findings, now), self._clock)

    async def _feed_for_ever(self) -> None:
        committed = await self._when_there(self._committed)
        following = dict(committed)
        start: Start | Mapping[Topic, Start] = await self._when_there(self._warm_start)
        while True:
            try:
                async with self._bus.subscribe(self.topics, start) as subscription:
                    await self._say_when_caught_up(subscription)
                    async for records in subscription:
                        for record in records:
                            await self._feed(record, live=record.offset >= committed.get(record.topic, 0))
                            following[record.topic] = record.offset + 1
                        await self._say_when_caught_up(subscription)
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)
                start = {t: AtOffset(following[t]) if t in following else start_of(start, t) for t in self.topics}

    async def _say_when_caught_up(self, subscription: Subscription) -> None:
        if not self.caught_up.is_set() and await subscription.caught_up():
            self.caught_up.set()

    async def _when_there(self, call: Any) -> Any:
        while True:
            try:
                return await call()
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)

    async def _committed(self) -> dict[Topic, int]:
        return dict(await self._bus.committed(GROUP))

    async def _warm_start(self) -> Start:
        """Where to begin: :data:`WARM_SECONDS` before the first record that nobody has dealt with, or before now."""
        committed = await self._committed()
        if any([await self._bus.end(topic) > offset for topic, offset in committed.items()]):
            waiting = {topic: AtOffset(offset) for topic, offset in committed.items()}
            async with self._bus.subscribe(tuple(committed), waiting) as subscription:
                async for records in subscription:
                    return AtTime(records[0].time - WARM_SECONDS)
        return AtTime(self._clock.now() - WARM_SECONDS)

    async def _feed(self, record: Record, *, live: bool) -> None:
        taken = self.intake.take(record)
        self.stats.lag_seconds[record.topic] = max(0.0, self._clock.now() - record.time)
        if live:
            self.stats.warm = True
            for refusal in taken.refusals:
                await self._dead.put(refusal)
        is_tick = record.topic is Topic.TICKS and taken.frame is not None
        wanted = [d for d in self._detectors if taken.frame is not None and (is_tick or record.topic in d.topics)]
        event = _Event(record, taken.frame, self._health(record) if is_tick else None, live, len(wanted))
        await self._room_for(len(record.payload))
        self._events.append(event)
        self.stats.in_flight_bytes += len(record.payload)
        self.stats.frames += not is_tick
        self.stats.ticks += is_tick
        for detector in wanted:
            await self._channels[detector.name].put(event)

    def _health(self, tick: Record) -> ReaderHealth:
        self.intake.ledger.expire(tick.time)
        if self._watching_since is None or self._last_tick is None or tick.time - self._last_tick > GAP_SECONDS:
            self._watching_since = tick.time
        self._last_tick = tick.time
        return reader_health(self.intake, self.stats.lag_seconds, self._watching_since)

    async def _room_for(self, size: int) -> None:
        self._settle()
        while self._events and self.stats.in_flight_bytes + size > IN_FLIGHT_BYTES_MAX:
            self._settled.clear()
            await self._settled.wait()
            self._settle()

    def _settle(self) -> None:
        """Forget what all agents have done, from the oldest on, and remember how far that reaches."""
        while self._events and not self._events[0].pending:
            event = self._events.popleft()
            self.stats.in_flight_bytes -= len(event.record.payload)
            if event.live:
                self._done[event.record.topic] = event.record.offset + 1

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            self._settle()
            if not self._done:
                continue
            reached, self._done = self._done, {}
            try:
                await self._bus.commit(GROUP, reached)
            except BusUnavailable as error:
                _log.warning("positions are not committed: %s", error)
                self._done = {**reached, **self._done}


def start_of(start: Start | Mapping[Topic, Start], topic: Topic) -> Start:
    """The start of one topic."""
    return start[topic] if isinstance(start, Mapping) else start


def _close_spare_loop(app: Any) -> None:
    """Close the event loop of the consumer thread that faust makes even where Kafka is off, and never starts."""
    thread = getattr(app.consumer, "_thread", None)
    if thread is not None and not thread.thread_loop.is_running():
        thread.thread_loop.close()
