"""The detectors as faust agents: the only file that knows faust.

``bus.subscribe`` feeds one faust channel for each detector, in the order of the bus; an agent takes an event, lets its
detector look, publishes what it found, and acknowledges. What is acknowledged by all agents is committed. Faust's own
consumer, with its rebalances, tables and changelogs, is not used, and no broker is needed for it to run.

After a crash the service reads back :data:`~detectors.position.WARM_SECONDS` before the committed position, so that
detectors know their baselines again. What they say meanwhile was said before; from the committed position on they
speak. Before that they are handed what was ever said and not taken back (:mod:`detectors.memory`), which may be older
than what is read back.

Several services may run at once. Slices share the partitions between them, each reading a fixed set; two copies of one
slice read and say the same, under the same ids, and what the second one says changes nothing.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import faust
from faust.app.base import BootStrategy

from detectors.detector import Detector, EndsElsewhere, ReaderHealth, reader_health
from detectors.ends import hear_of_ends
from detectors.memory import is_ended_by
from detectors.position import GROUP, READ, WARM_SECONDS, Position, read_position, still_open, tick_group
from telemetry_bus.ages import Ages
from telemetry_bus.bus import WHOLE, Bus, Record, Slice, Subscription
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.errors import BusUnavailable, FrameError
from telemetry_bus.findings import Finding, findings_frame
from telemetry_bus.frames import Frame, FrameMaker, merge
from telemetry_bus.intake import Intake
from telemetry_bus.publisher import publish_until_durable
from telemetry_bus.reading import Reading
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

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
    ages: Ages = field(default_factory=Ages)
    """Of live rows, when every detector that wants them has looked at them."""


@dataclass(slots=True)
class _Event:
    """Neighbouring records of one topic on their way through the agents, ``pending`` of which have not yet acknowledged
    them. ``record`` is the last one, ``following`` the next offset of each partition behind them, ``size`` the bytes of
    all payloads."""

    record: Record
    following: Mapping[int, int]
    size: int
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
        self,
        bus: Bus,
        detectors: Sequence[Detector],
        clock: Clock,
        dead_letters: DeadLetters,
        source: str,
        commit_seconds: float = COMMIT_SECONDS,
        part: Slice = WHOLE,
    ) -> None:
        self._bus, self._detectors, self._clock, self._dead = bus, tuple(detectors), clock, dead_letters
        self._part = part
        self._maker = FrameMaker(source)
        self._commit_seconds = commit_seconds
        self._channels: dict[str, Any] = {}
        self._events: deque[_Event] = deque()
        self._done: dict[Topic, dict[int, int]] = {}
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

    async def run(self) -> None:
        """Feed the agents and commit what they have done."""
        app = await asyncio.to_thread(self._make_app)
        await app.start()
        app.flow_control.resume()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed_for_ever())
                tasks.create_task(self._commit_for_ever())
                tasks.create_task(self._hear_of_ends())
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
            if event.live and event.frame is not None and event.health is None:
                self.stats.ages.add(event.frame.manifest, self._clock.now())

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
        if self._part != WHOLE:
            findings = [replace(item, evidence={**item.evidence, "slice": str(self._part)}) for item in findings]
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
        now = self._clock.now()
        position = await self._when_there(lambda: read_position(self._bus, self._part, self._clock.now()))
        names = [detector.name for detector in self._detectors]
        self._open = await self._when_there(lambda: still_open(self._bus, position, names, now))
        reading = Reading(position.starts(), position.ends)
        while True:
            try:
                async with self._bus.subscribe(READ, reading.starts(), self._part) as subscription:
                    await self._note_caught_up(subscription, position, reading)
                    async for records in subscription:
                        self._note_lag(records)
                        for group in position.groups(reading.take(records)):
                            await self._feed(group, position)
                        await self._note_caught_up(subscription, position, reading)
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)

    async def _hear_of_ends(self) -> None:
        """Tell the detectors of ends that cut-off nodes have said, once the rows of the time before have been read."""
        await self.caught_up.wait()
        hearing = {detector.name: detector for detector in self._detectors if isinstance(detector, EndsElsewhere)}

        def heard(finding: Finding) -> None:
            waiting = self._open.get(finding.detector, [])  # not yet handed over: there was no live event
            self._open[finding.detector] = [item for item in waiting if not is_ended_by(item, finding)]
            if (detector := hearing.get(finding.detector)) is not None:
                detector.ended(finding)

        await hear_of_ends(self._bus, self._clock.now() - WARM_SECONDS, heard)

    async def _note_caught_up(self, subscription: Subscription, position: Position, reading: Reading) -> None:
        if self.caught_up.is_set() or not await subscription.caught_up():
            return
        self.caught_up.set()
        # What is older than the window at the first start of all is nobody's concern any more. A partition of which
        # nothing was read gets a position too, so that its first rows are found however long nobody reads.
        for topic, ends in reading.unread(position.partitions()).items():
            known = position.committed.get(topic, {})
            for at, end in ends.items():
                if at not in known:
                    self._done.setdefault(topic, {}).setdefault(at, end)

    async def _when_there(self, call: Any) -> Any:
        while True:
            try:
                return await call()
            except BusUnavailable as error:
                _log.warning("detectors wait for the bus: %s", error)
                await asyncio.sleep(REFUSED_AGAIN_SECONDS)

    async def _feed(self, records: Sequence[Record], position: Position) -> None:
        """Hand on neighbouring records of one topic as one event: what a detector costs, it costs for each frame."""
        record, frames = records[-1], await self._frames(records, position)
        frame = merge(frames) if frames else None
        is_tick = record.topic is Topic.TICKS and frame is not None
        wanted = [d for d in self._detectors if frame is not None and (is_tick or record.topic in d.topics)]
        size = sum(len(item.payload) for item in records)
        health = self._health(record) if is_tick else None
        following = {item.partition: item.offset + 1 for item in records}
        event = _Event(record, following, size, frame, health, position.is_live(record), len(wanted))
        await self._room_for(size)
        self._events.append(event)
        self.stats.in_flight_bytes += size
        self.stats.frames += 0 if is_tick else len(frames)
        self.stats.ticks += is_tick
        for detector in wanted:
            await self._channels[detector.name].put(event)

    async def _frames(self, records: Sequence[Record], position: Position) -> list[Frame]:
        """What can be read of ``records``; what cannot goes to the dead letters, once."""
        frames = []
        for record in records:
            taken = self.intake.take(record)
            if taken.frame is not None:
                frames.append(taken.frame)
            if position.is_live(record):
                self.stats.warm = True
                if not position.was_refused(record):
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
            self.stats.lag_seconds = dict.fromkeys(READ, 0.0)
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
        lag, part = {} if catching_up else self.stats.lag_seconds, "" if self._part == WHOLE else str(self._part)
        return reader_health(self.intake, lag, self._watching_since, self._maker.source, part)

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
                self._done.setdefault(event.record.topic, {}).update(event.following)

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._commit_seconds)
            self._settle()
            if not self._done:
                continue
            reached, self._done = self._done, {}
            try:
                await self._bus.commit(GROUP, reached)
                if self._part != WHOLE and Topic.TICKS in reached:
                    await self._bus.commit(tick_group(self._part), {Topic.TICKS: reached[Topic.TICKS]})
            except BusUnavailable as error:
                _log.warning("positions are not committed: %s", error)
                self._done = {
                    topic: {**reached.get(topic, {}), **self._done.get(topic, {})}
                    for topic in reached.keys() | self._done.keys()
                }


def _close_spare_loop(app: Any) -> None:
    """Close the event loop of the consumer thread that faust makes even where Kafka is off, and never starts."""
    thread = getattr(app.consumer, "_thread", None)
    if thread is not None and not thread.thread_loop.is_running():
        thread.thread_loop.close()
