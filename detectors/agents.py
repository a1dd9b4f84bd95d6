"""The detectors as faust agents: the only file that knows faust.

``bus.subscribe`` feeds one faust channel for each detector, in the order of the bus; an agent takes an event, lets its
detector look, publishes what it found, and acknowledges. What is acknowledged by all agents is committed. Faust's own
consumer, with its rebalances, tables and changelogs, is not used, and no broker is needed for it to run.

After a crash the service reads back :data:`WARM_SECONDS` before the committed position, so that detectors know their
baselines again. What they say meanwhile was said before; from the committed position on they speak. Before that they
are handed what was ever said and not taken back (:mod:`detectors.memory`), which may be older than what is read back.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import faust
from faust.app.base import BootStrategy

from detectors.detector import Detector, ReaderHealth, reader_health
from detectors.memory import OpenFindings
from telemetry_bus.bus import AtOffset, AtTime, Bus, Record, Start, Subscription
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.errors import BusUnavailable, FrameError
from telemetry_bus.findings import Finding, findings_frame, findings_in
from telemetry_bus.frames import Frame, FrameMaker, merge
from telemetry_bus.intake import Intake
from telemetry_bus.publisher import publish_until_durable
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TELEMETRY, Topic

GROUP = "detect"
WARM_SECONDS = 3600.0
"""What is read back of a run: at 30 s a step these are 120 rows, nearly the whole window of 128 of loss_spike, which is
silent in its first 50."""
WARM_BULK_SECONDS = 600.0
"""The same for rows of GPUs and named numbers, which are many and whose longest memory is two minutes of work."""
WARM: dict[Topic, float] = dict.fromkeys((*TELEMETRY, Topic.TICKS), WARM_SECONDS) | {
    Topic.GPU: WARM_BULK_SECONDS,
    Topic.METRICS: WARM_BULK_SECONDS,
}
FIRST_SECONDS = 600.0
"""What is looked at, and spoken of, at the first start of all."""
MEMORY_SECONDS = 7 * 86_400.0
"""Findings that are read for what is still open: trouble that nobody has ended in a week is no news for anybody."""
CURRENT_SECONDS = 2.0
"""A reader whose oldest record is younger is at the end of the log: ticks come every second."""
CATCH_UP_SECONDS = 60.0
"""After a restart or an outage of the bus the reader is behind for a while, which is no slowness. It reads hundreds of
times faster than the log grows: what takes it longer than this is said."""
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
    """Age of the oldest waiting record of each topic when it was last read; zero once the reader is at the end."""
    in_flight_bytes: int = 0
    warm: bool = False


@dataclass(slots=True)
class _Event:
    """Neighbouring records of one topic on their way through the agents, ``pending`` of which have not yet acknowledged
    them. ``record`` is the last one, ``size`` the bytes of all payloads."""

    record: Record
    size: int
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

    def is_live(self, record: Record) -> bool:
        """Whether nobody has dealt with ``record`` yet."""
        return record.offset >= self.committed.get(record.topic, 0)

    def groups(self, records: Sequence[Record]) -> Iterator[list[Record]]:
        """``records`` cut where the topic or the liveness changes; a tick stands alone, for it is a moment."""
        for _, group in groupby(
            records,
            lambda record: (record.topic, self.is_live(record), record.offset if record.topic is Topic.TICKS else 0),
        ):
            yield list(group)


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
        self._current_at = clock.monotonic()
        self._open: dict[str, list[Finding]] = {}
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
        if event.live:
            self._remind(detector, event.record.time)
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

    def _remind(self, detector: Detector, now: float) -> None:
        """Hand a detector, before its first live event, what it said before and has not taken back."""
        for finding in self._open.pop(detector.name, ()):
            try:
                detector.remember(finding, now)
            except Exception:  # noqa: BLE001  as above; what cannot be taken up costs only itself
                self.stats.errors[detector.name] += 1
                _log.exception("detector %s cannot take up its finding %s", detector.name, finding.id)

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
        self._open = await self._when_there(lambda: self._still_open(position))
        following: dict[Topic, int] = {}
        start: Start | Mapping[Topic, Start] = _start_before(position)
        while True:
            try:
                async with self._bus.subscribe(self.topics, start) as subscription:
                    await self._note_caught_up(subscription, position, following)
                    async for records in subscription:
                        self._note_lag(records)
                        for group in position.groups(records):
                            await self._feed(group, position)
                            following[group[-1].topic] = group[-1].offset + 1
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

    async def _still_open(self, position: _Position) -> dict[str, list[Finding]]:
        """By detector, what was said of the time before the position and has not been taken back.

        What was said of later rows is left out: those rows are looked at again, and say it again under the same id.
        """
        if not position.committed or not await self._bus.end(Topic.FINDINGS):
            return {}
        said, intake = OpenFindings(), Intake()
        start = AtTime(self._clock.now() - MEMORY_SECONDS)
        async with self._bus.subscribe((Topic.FINDINGS,), start) as subscription:
            if not await subscription.caught_up():
                async for records in subscription:
                    for record in records:
                        said.take(_findings_of(intake, record))
                    if await subscription.caught_up():
                        break
        return {d.name: said.of(d.name, position.since) for d in self._detectors}

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

    async def _feed(self, records: Sequence[Record], position: _Position) -> None:
        """Hand on neighbouring records of one topic as one event: what a detector costs, it costs for each frame."""
        record, frames = records[-1], await self._frames(records, position)
        frame = merge(frames) if frames else None
        is_tick = record.topic is Topic.TICKS and frame is not None
        wanted = [d for d in self._detectors if frame is not None and (is_tick or record.topic in d.topics)]
        size = sum(len(item.payload) for item in records)
        health = self._health(record) if is_tick else None
        event = _Event(record, size, frame, health, position.is_live(record), len(wanted))
        await self._room_for(size)
        self._events.append(event)
        self.stats.in_flight_bytes += size
        self.stats.frames += 0 if is_tick else len(frames)
        self.stats.ticks += is_tick
        for detector in wanted:
            await self._channels[detector.name].put(event)

    async def _frames(self, records: Sequence[Record], position: _Position) -> list[Frame]:
        """What can be read of ``records``; what cannot goes to the dead letters, once."""
        frames = []
        for record in records:
            taken = self.intake.take(record)
            if taken.frame is not None:
                frames.append(taken.frame)
            if position.is_live(record):
                self.stats.warm = True
                if (record.topic.value, record.offset) not in position.refused:
                    for refusal in taken.refusals:
                        await self._dead.put(refusal)
        return frames

    def _note_lag(self, records: Sequence[Record]) -> None:
        """How old is what waits: the records that have just come, and those that the agents have not dealt with."""
        self._settle()
        now = self._clock.now()
        waiting = [*([self._events[0].record] if self._events else []), *records]
        lag: dict[Topic, float] = {}
        for record in waiting:
            lag[record.topic] = max(lag.get(record.topic, 0.0), now - record.time)
        if max(lag.values()) <= CURRENT_SECONDS:
            self._current_at = self._clock.monotonic()
            self.stats.lag_seconds = dict.fromkeys(self.topics, 0.0)
        self.stats.lag_seconds.update(lag)

    def _health(self, tick: Record) -> ReaderHealth:
        before = self._last_tick
        set_back = before is not None and tick.time < before - GAP_SECONDS
        if set_back:
            self.intake.ledger.set_back(tick.time)
        if before is None or set_back or tick.time - before > GAP_SECONDS or self._watching_since is None:
            self._watching_since = tick.time
        self._last_tick = tick.time
        self.intake.ledger.expire(tick.time)
        catching_up = self._clock.monotonic() - self._current_at <= CATCH_UP_SECONDS
        return reader_health(self.intake, {} if catching_up else self.stats.lag_seconds, self._watching_since)

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
            self.stats.in_flight_bytes -= event.size
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


def _start_before(position: _Position) -> Mapping[Topic, Start]:
    """Where to begin so that detectors are warm at ``position``."""
    return {
        topic: AtTime(position.since - (seconds if position.committed else FIRST_SECONDS))
        for topic, seconds in WARM.items()
    }


def _findings_of(intake: Intake, record: Record) -> list[Finding]:
    """The findings of a record; what cannot be read has been refused by alerting, with its reason."""
    frame = intake.take(record).frame
    try:
        return [] if frame is None else findings_in(frame)
    except ValueError as error:
        _log.warning("findings at offset %d cannot be taken up again: %s", record.offset, error)
        return []


def start_of(start: Start | Mapping[Topic, Start], topic: Topic) -> Start:
    """The start of one topic."""
    return start[topic] if isinstance(start, Mapping) else start


def _close_spare_loop(app: Any) -> None:
    """Close the event loop of the consumer thread that faust makes even where Kafka is off, and never starts."""
    thread = getattr(app.consumer, "_thread", None)
    if thread is not None and not thread.thread_loop.is_running():
        thread.thread_loop.close()
