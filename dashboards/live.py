"""The live service of a `serve` process: reads the fan-out, keeps the state, and each tick encodes what has changed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dashboards import losses, views
from dashboards.fleet import FleetState
from dashboards.gpu_users import GpuUsersState
from dashboards.heat_channels import HeatChannels
from dashboards.incidents import IncidentFeed
from dashboards.jobs import JobsState
from dashboards.spools import Spools
from dashboards.stream import Broadcast, Event, encoded
from telemetry_bus.ages import Ages
from telemetry_bus.bus import Record
from telemetry_bus.fanout import FanOut
from telemetry_bus.federation import BusState
from telemetry_bus.frames import Frame
from telemetry_bus.intake import Intake
from telemetry_bus.ring import Skipped
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TELEMETRY, Topic

TICK_SECONDS = 0.25
"""Curves and job lines move four times a second: faster than an eye asks for, slow enough to cost nothing."""
FLEET_TICKS = 4
"""GPUs are sampled once a second, so the heatmap and the health line go out once a second."""
SWEEP_TICKS = 40
"""Every ten seconds what is silent is freed and holes that are too old are called lost."""
INCIDENTS_POLL_SECONDS = 0.1
"""Without a push, an incident is on the page within a tenth of a second."""
CURVE_JOBS_MAX = 256
"""Jobs whose new points go out in one tick (some 100 bytes each); of the others the names do."""
LOSSES_SHOWN_MAX = 8
"""Sources that the page names for each kind of loss; /metrics names more."""
JOBS_SHOWN_MAX = 200
"""Lines of the job list; the number of all is told."""
TICKLESS_SECONDS = 5.0
"""Ticks come once a second while a detect role runs and can write to the bus: without five of them nobody watches."""
BREATH_RECORDS = 32
"""Records of one topic that are taken before others get their turn: some 10 ms of work."""

_log = logging.getLogger(__name__)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the groups around it."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


class Live:
    """The state that the page shows. :meth:`run` keeps it up until it is cancelled; ``failure`` says why it ended."""

    def __init__(
        self,
        fan: FanOut,
        feed: IncidentFeed,
        broadcast: Broadcast,
        clock: Clock,
        push: asyncio.Event | None = None,
        buses: Callable[[], Sequence[BusState]] = tuple,
    ) -> None:
        self.intake = Intake()
        self.fleet = FleetState()
        self.jobs = JobsState()
        self.heat = HeatChannels()
        self.spools = Spools()
        self.gpu_users = GpuUsersState()
        self.buses = buses
        self.ages = Ages()
        """Of live rows, when the state shows them."""
        self.frames: Counter[Topic] = Counter(dict.fromkeys(fan.topics, 0))
        self.newest: dict[Topic, float] = {}
        self.skipped = 0
        self.lag_seconds: float | None = None
        """The longest wait of a record between the bus and here, in the last second; None if none came."""
        self.topic_lag_seconds: dict[Topic, float] = {}
        """The same by topic, for topics of which something came."""
        self.failure: BaseException | None = None
        self._fan, self._feed, self._broadcast, self._clock = fan, feed, broadcast, clock
        self._push = asyncio.Event() if push is None else push
        self._started = clock.monotonic()
        self._ticked: float | None = None
        self._lag: dict[Topic, float] = {}
        self._curve_sent = 0
        self._layout_sent = -1
        self._jobs_dirty = True
        self._snapshot_of = -1
        self._snapshots: dict[str, bytes] = {}

    async def run(self) -> None:
        """Read, tick and follow the incidents, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for topic in self._fan.topics:
                    tasks.create_task(self._follow(topic), name=f"live {topic}")
                tasks.create_task(self._tick_for_ever(), name="live tick")
                tasks.create_task(self._follow_incidents(), name="live incidents")
        except* Exception as group:  # noqa: BLE001 - kept, logged and told by /healthz, which has the process restarted
            self.failure = _first(group)
            _log.error("the live state has ended; /healthz says so", exc_info=self.failure)

    async def _follow(self, topic: Topic) -> None:
        with self._fan.oldest(topic) as reader:
            taken = 0
            moved = False
            async for item in reader:
                if isinstance(item, Skipped):
                    self.skipped += item.count
                    moved = True
                    continue
                if moved:
                    # What was left out came before this record, and is on the bus: nobody has lost it.
                    self.intake.ledger.skipped_before(item.time)
                    moved = False
                self.take(item)
                taken += 1
                if taken % BREATH_RECORDS == 0:
                    await asyncio.sleep(0)

    def take(self, record: Record) -> None:
        """Bring the state up to ``record``."""
        lag = self._clock.now() - record.time
        self._lag[record.topic] = max(self._lag.get(record.topic, lag), lag)
        self.newest[record.topic] = record.time
        if record.topic is Topic.TICKS and lag <= TICKLESS_SECONDS:
            self._ticked = self._clock.monotonic()
        self.frames[record.topic] += 1
        taken = self.intake.take(record)
        if taken.frame is not None:
            self._show(record.topic, taken.frame)
            if self._fan.is_caught_up and record.topic in TELEMETRY:
                self.ages.add(taken.frame.manifest, self._clock.now())

    def _show(self, topic: Topic, frame: Frame) -> None:
        # The backlog is what was missed in an outage: it fills curves, and a GPU's row only where it is the newest.
        match frame.schema_id:
            case "gpu/1":
                self.fleet.observe(frame)
            case "train/1":
                self.jobs.observe(frame)
                self._jobs_dirty = True
            case "metric/1":
                self.jobs.observe_metrics(frame)
            case "event/1" if topic is not Topic.BACKLOG:
                self.jobs.observe_events(frame)
                self.spools.observe(frame)
                self.gpu_users.observe(frame)
                self._jobs_dirty = True
            case _:
                pass

    def watching(self) -> bool | None:
        """Whether a detect role is seen to tick; ``None`` while this process is too young to know.

        Its arrival counts, not its time: a wall clock that is set back must not make an old tick a new one.
        """
        now = self._clock.monotonic()
        if self._ticked is not None and now - self._ticked <= TICKLESS_SECONDS:
            return True
        return None if now - self._started <= TICKLESS_SECONDS else False

    async def _follow_incidents(self) -> None:
        while True:
            if changed := await self._feed.refresh():
                self._broadcast.send("incidents", self.incidents_event(changed))
            try:
                async with asyncio.timeout(INCIDENTS_POLL_SECONDS):
                    await self._push.wait()
            except TimeoutError:
                continue
            self._push.clear()

    async def _tick_for_ever(self) -> None:
        number = 0
        while True:
            self.tick(number)
            number += 1
            await asyncio.sleep(TICK_SECONDS)

    def tick(self, number: int) -> None:
        """Encode and send what has changed since the last tick."""
        now = self._clock.now()
        # Who comes later gets a snapshot, so nothing is encoded for nobody.
        watched = self._broadcast.clients > 0
        each_second = number % FLEET_TICKS == 0
        if each_second:
            self._note_lag()
        events = self._events(now, each_second) if watched else []
        self._curve_sent = self.jobs.curve_clock
        self._broadcast.send_together(events)
        if each_second and watched:
            for channel, cells in self.heat.changes(self.fleet, now, self._broadcast.watched):
                self._broadcast.send_together([("heat", cells)], channel)
        if number % SWEEP_TICKS == SWEEP_TICKS - 1:
            self.fleet.forget(now)
            self.jobs.forget(now)
            self.spools.forget(now)
            self.gpu_users.forget(now)
            self.intake.ledger.expire(now)

    def _note_lag(self) -> None:
        self.topic_lag_seconds, self._lag = self._lag, {}
        self.lag_seconds = max(self.topic_lag_seconds.values(), default=None)

    def _events(self, now: float, each_second: bool) -> list[Event]:
        """What has changed since the last tick, for everybody."""
        events: list[Event] = []
        clock, known = self.jobs.curve_clock, self.jobs.jobs.values()
        if clock > self._curve_sent:
            events.append(("curve", views.curve_deltas(known, self._curve_sent, clock, CURVE_JOBS_MAX)))
        if self._jobs_dirty or each_second:
            events.append(("jobs", self.jobs_event(now)))
            self._jobs_dirty = False
        if each_second:
            events += [("fleet", self.fleet_event(now)), ("health", self.health_event(now))]
        return events

    def fleet_event(self, now: float, *, whole: bool = False) -> dict[str, Any]:
        """The fleet's counts; with the layout of the heatmap if there is a new one, or if ``whole``."""
        layout = self.heat.lay_out(self.fleet, now)
        event = views.fleet_now(self.fleet, now) | {"revision": layout.revision}
        if whole or self._layout_sent != self.heat.layout_number:
            event["layout"] = layout.event(self.fleet)
            event["choices"] = views.metric_choices(self.fleet)
            if not whole:
                self._layout_sent = self.heat.layout_number
        return event

    def jobs_event(self, now: float) -> dict[str, Any]:
        """The job list: those with the newest rows, and the number of all."""
        newest = sorted(self.jobs.jobs.values(), key=lambda job: -job.last_seen)[:JOBS_SHOWN_MAX]
        lines = [views.job_summary(job, now) for job in newest]
        return {"time": now, "count": len(self.jobs.jobs), "jobs": lines, "curve_version": self.jobs.curve_clock}

    def incidents_event(self, incidents: list[dict[str, Any]]) -> dict[str, Any]:
        """Incidents that have changed (or all), and how many are open by tier."""
        return {
            "time": self._clock.now(),
            "revision": self._feed.revision,
            "open": self._feed.open_by_tier(),
            "incidents": incidents,
        }

    def health_event(self, now: float) -> dict[str, Any]:
        """Nantucket about itself. Absent is ``None``: no lag is known while nothing comes."""
        newest = max(self.newest.values(), default=None)
        return {
            "time": now,
            "bus": "available" if self._fan.available else "unavailable",
            "store": "available" if self._feed.failure is None else "unavailable",
            "watching": self.watching(),
            "lag_seconds": self.lag_seconds,
            "newest_record": newest,
            "frames": self.frame_counts(),
            "topics": {str(topic): count for topic, count in self.frames.items()},
            "topic_lag_seconds": {str(topic): seconds for topic, seconds in self.topic_lag_seconds.items()},
            "losses": losses.by_source(self.intake.ledger, LOSSES_SHOWN_MAX),
            "regions": views.region_lines(self.fleet, self.intake.regions, now),
            "buses": [asdict(state) for state in self.buses()],
            "spools": self.spools.total(now),
            "refused": {reason.value: count for reason, count in self.intake.refused.items() if count > 0},
            "skipped": self.skipped,
            "clients": self._broadcast.clients,
            "clock_offsets": dict(list(self.intake.clock_offsets.items())[:8]),
            "rows_over_limit": self.fleet.rows_over_limit,
            "jobs_dropped": self.jobs.jobs_dropped,
        }

    def frame_counts(self) -> Mapping[str, int]:
        """What the ledger has counted: ``missing`` is what is outstanding and what is lost for good."""
        ledger = self.intake.ledger
        return {
            "seen": ledger.frames_total,
            "outstanding": ledger.outstanding,
            "lost": ledger.lost_total,
            "missing": ledger.outstanding + ledger.lost_total,
            "duplicate": ledger.duplicate_total,
        }

    def snapshot(self, channel: str = "") -> bytes:
        """Everything, as a client of ``channel`` that has just come needs it: made once for all who come before the
        next event."""
        if self._snapshot_of != self._broadcast.end:
            self._snapshot_of, self._snapshots = self._broadcast.end, {}
        if channel not in self._snapshots:
            self._snapshots[channel] = self._encode_snapshot(channel)
        return self._snapshots[channel]

    def _encode_snapshot(self, channel: str) -> bytes:
        now = self._clock.now()
        events = [("health", self.health_event(now)), ("fleet", self.fleet_event(now, whole=True))]
        if channel:
            events.append(("heat", self.heat.whole(self.fleet, now, channel)))
        events += [
            ("jobs", self.jobs_event(now)),
            ("incidents", self.incidents_event(self._feed.newest()) | {"whole": True}),
        ]
        return b"".join(encoded(name, data) for name, data in events)

    def job(self, name: str, attempt: str | None) -> dict[str, Any] | None:
        """A job with the curve of its newest attempt, or of ``attempt``; ``None`` if there is none."""
        job = self.jobs.jobs.get(name)
        if job is None:
            return None
        shown = job.newest if attempt is None else job.attempts.get(attempt)
        if shown is None:
            return None
        gpus, count = self.gpu_users.of_job(name)
        detail = views.job_detail(job, shown, self._clock.now(), self.jobs.curve_clock)
        return detail | {"gpus": gpus, "gpus_count": count}
