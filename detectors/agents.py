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
from telemetry_bus.errors import BusUnavailable, FrameError
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


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a service begins: the committed offsets, the ends of the topics, the bus's time (UTC seconds) of the first
    record that nobody has dealt with, and what of the records after that is in the dead-letter topic already (topic,
    offset)."""

    committed: Mapping[Topic, int]
    ends: Mapping[Topic, int]
    since: float
    refused: frozenset[tuple[str, int]]


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
        self,
        bus: Bus,
        detectors: Sequence[Detector],
        clock: Clock,
        dead_letters: DeadLetters,
        source: str,
        commit_seconds: float = COMMIT_SECONDS,
    ) -> None:
        self._bus, self._detectors, self._clock, self._dead = bus, tuple(detectors), clock, dead_letters
        self._maker = FrameMaker(source)
        self._commit_seconds = commit_seconds
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
        """Until they are durable. What no reader would take (a text beyond its limit) leaves the others alone."""
        frame = findings_frame(self._maker, findings, self._clock.now())
        try:
            await publish_until_durable(self._bus, Topic.FINDINGS, frame, self._clock)
        except FrameError as error:
            # Raised before anything was sent: the frame does not count, and readers must not miss it.
            self._maker.seq = frame.manifest[0].seq
            if len(findings) > 1:
                for finding in findings:
                    await self._publish(name, [finding])
                return
            self.stats.errors[name] += 1
            _log.error("a finding of detector %s cannot be sent: %s", name, error)
            return
        self.stats.findings[name] += len(findings)

    async def _feed_for_ever(self) -> None:
        position = await self._when_there(self._position)
        following: dict[Topic, int] = {}
        start: Start | Mapping[Topic, Start] = AtTime(position.since - WARM_SECONDS)
        while True:
            try:
                async with self._bus.subscribe(self.topics, start) as subscription:
                    await self._note_caught_up(subscription, position, following)
                    async for records in subscription:
                        for record in records:
                            await self._feed(record, position)
                            following[record.topic] = record.offset + 1
                        await self._note_caught_up(subscription, position, following)
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)
                start = {t: AtOffset(following[t]) if t in following else start_of(start, t) for t in self.topics}

    async def _note_caught_up(
        self, subscription: Subscription, position: _Position, following: Mapping[Topic, int]
    ) -> None:
        if self.caught_up.is_set() or not await subscription.caught_up():
            return
        self.caught_up.set()
        # What is older than the window at the first start of all is nobody's concern any more. A topic of which nothing
        # was read gets a position too, so that its first rows are found however long nobody reads.
        unread = position.ends.keys() - position.committed.keys() - following.keys()
        self._done.update({topic: position.ends[topic] for topic in unread - self._done.keys()})

    async def _when_there(self, call: Any) -> Any:
        while True:
            try:
                return await call()
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)

    async def _position(self) -> _Position:
        """Where the service before this one stopped, if there was one."""
        ends = {topic: await self._bus.end(topic) for topic in self.topics}
        committed = dict(await self._bus.committed(GROUP))
        since = await self._first_waiting(committed, ends)
        return _Position(committed, ends, since, await self._refused_since(since))

    async def _first_waiting(self, committed: Mapping[Topic, int], ends: Mapping[Topic, int]) -> float:
        """The bus's time of the oldest record that nobody has dealt with, or now."""
        if any(ends[topic] > offset for topic, offset in committed.items() if topic in ends):
            waiting = {topic: AtOffset(offset) for topic, offset in committed.items()}
            async with self._bus.subscribe(tuple(committed), waiting) as subscription:
                async for records in subscription:
                    return min(self._clock.now(), *(record.time for record in records))
        return self._clock.now()

    async def _refused_since(self, since: float) -> frozenset[tuple[str, int]]:
        """Topic and offset of what is in the dead-letter topic already: the commit that followed it was lost."""
        found, intake = set[tuple[str, int]](), Intake()
        if not await self._bus.end(Topic.DEAD_LETTER):
            return frozenset()
        async with self._bus.subscribe((Topic.DEAD_LETTER,), AtTime(since)) as subscription:
            if await subscription.caught_up():
                return frozenset()
            async for records in subscription:
                frames = [taken.frame for taken in map(intake.take, records) if taken.frame is not None]
                for frame in frames:
                    rows = frame.batch.select(["topic", "offset"]).to_pylist()
                    found.update((row["topic"], row["offset"]) for row in rows)
                if await subscription.caught_up():
                    break
        return frozenset(found)

    async def _feed(self, record: Record, position: _Position) -> None:
        live = record.offset >= position.committed.get(record.topic, 0)
        taken = self.intake.take(record)
        self.stats.lag_seconds[record.topic] = max(0.0, self._clock.now() - record.time)
        if live:
            self.stats.warm = True
            if (record.topic.value, record.offset) not in position.refused:
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
            await asyncio.sleep(self._commit_seconds)
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
