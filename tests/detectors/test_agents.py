"""The agents on the real embedded bus and the real faust: what is found is said once and never lost."""

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

import pytest

from detectors import Detector, ReaderHealth, all_detectors, detector_config
from detectors.agents import (
    CATCH_UP_SECONDS,
    GAP_SECONDS,
    IN_FLIGHT_BYTES_MAX,
    DetectorService,
)
from detectors.position import FIRST_SECONDS, GROUP, WARM_SECONDS
from telemetry_bus import BusUnavailable, Earliest, Frame, FrameMaker, Intake, Record, Topic, encode, findings_in
from telemetry_bus.bus import WHOLE, Positions, Slice, Start, Subscription
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.schemas import FindingState, Severity

NAN = float("nan")
COMMIT_SECONDS = 0.01
GUARD_SECONDS = 40.0
"""A guard against a test that hangs; no test waits for it to pass."""


class Echo:
    """Says each step that it sees; `fails_at` raises there, once for each time that it is asked."""

    topics = frozenset({Topic.TRAIN})

    def __init__(self, name: str, fails_at: int | None = None, words: Callable[[int], str] = str) -> None:
        self.name = name
        self.seen: list[int] = []
        self.healths: list[ReaderHealth] = []
        self.remembered: list[Finding] = []
        self._fails_at, self._words = fails_at, words

    def remember(self, finding: Finding, now: float) -> None:
        """Remember what was said, and when that was handed over."""
        assert finding.time < now
        self.remembered.append(finding)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """One finding for each row."""
        return [self._step(int(step), at) for step, at in zip(frame.numbers("step")[0], frame.times(), strict=True)]

    def _step(self, step: int, at: float) -> Finding:
        self.seen.append(step)
        if step == self._fails_at:
            raise RuntimeError(f"step {step} is too much for {self.name}")
        return Finding(
            id=finding_id(self.name, step), time=at, detector=self.name, kind=FindingKind.NONFINITE, job="j",
            state=FindingState.FIRING, severity=Severity.INFO, title=self._words(step), step=step,
        )  # fmt: skip

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Remember the health."""
        del now
        self.healths.append(health)
        return ()


class Unwilling:
    """The real bus, which refuses as often as it is told: `refusals` maps a topic to how many publishes are refused."""

    def __init__(self, bus: EmbeddedBus) -> None:
        self._bus, self.url = bus, bus.url
        self.refusals: dict[Topic, int] = {}
        self.refused = 0
        self.commits_refused = 0
        self.asked_to_commit: dict[Topic, int] = {}
        self.reading_breaks_after: int | None = None
        self.stop_before: int | None = None
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    async def identity(self) -> str:
        return await self._bus.identity()

    def stop_at(self, offset: int) -> None:
        """Yield no record from `offset` on, until `go_on` is set."""
        self.stop_before = offset
        self.stopped.clear()
        self.go_on.clear()

    async def __aenter__(self) -> Self:
        """The bus is open already."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Whoever opened it closes it."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Publish, or refuse."""
        if self.refusals.get(topic, 0) > 0:
            self.refusals[topic] -= 1
            self.refused += 1
            raise BusUnavailable(self.url, f"publish to {topic}", OSError("away"))
        return await self._bus.publish(topic, payloads, key)

    @contextlib.asynccontextmanager
    async def _subscribed(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice
    ) -> AsyncIterator[Subscription]:
        async with self._bus.subscribe(topics, start, part) as subscription:
            yield Breaking(self, subscription) if Topic.TICKS in topics else subscription

    def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read, until reading breaks."""
        return self._subscribed(topics, start, part)

    async def commit(self, group: str, positions: Positions) -> None:
        """Commit, or refuse."""
        self.asked_to_commit.update({topic: offsets[0] for topic, offsets in positions.items()})
        if self.commits_refused > 0:
            self.commits_refused -= 1
            raise BusUnavailable(self.url, "commit", OSError("away"))
        await self._bus.commit(group, positions)

    async def committed(self, group: str) -> Positions:
        """What is committed."""
        return await self._bus.committed(group)

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """The end of a topic."""
        return await self._bus.ends(topic)


class Breaking:
    """One record at a time; after `reading_breaks_after` of them the bus is away, once."""

    def __init__(self, bus: Unwilling, subscription: Subscription) -> None:
        self._bus, self._subscription = bus, subscription
        self._left = 0

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        """Yield record by record."""
        async for records in self._subscription:
            self._left = len(records)
            for record in records:
                if self._bus.reading_breaks_after == 0:
                    self._bus.reading_breaks_after = None
                    raise BusUnavailable(self._bus.url, "read", OSError("away"))
                if self._bus.reading_breaks_after is not None:
                    self._bus.reading_breaks_after -= 1
                if self._bus.stop_before is not None and record.offset >= self._bus.stop_before:
                    self._bus.stopped.set()
                    await self._bus.go_on.wait()
                self._left -= 1
                yield [record]

    async def caught_up(self) -> bool:
        """As the bus says, once the batch that it gave is through."""
        return not self._left and await self._subscription.caught_up()


class Scene:
    """A bus, its clock, and what was said on it."""

    def __init__(self, bus: EmbeddedBus, clock: ManualClock) -> None:
        self.clock, self.real = clock, bus
        self.bus = Unwilling(bus)
        self.job, self.ticks = FrameMaker("node/training"), FrameMaker("node/ticks")
        self.gpus, self.steps = FrameMaker("node-1/gpu"), 0

    async def step(self, step: int, *, job: str = "j", grad_norm: float = 1.0) -> int:
        """One step of a job; the offset of its record."""
        now = self.clock.now()
        frame = self.job.make(
            "train/1",
            {
                "time": [now], "job": [job], "attempt": ["1"], "rank": [0], "step": [step], "scope": ["shard"],
                "world_size": [1], "loss": [1.0], "grad_norm": [grad_norm],
            },
            now,
        )  # fmt: skip
        return (await self.real.publish(Topic.TRAIN, [encode(frame)]))[0]

    async def tick(self) -> None:
        """One tick of the bus's clock."""
        now = self.clock.now()
        await self.real.publish(Topic.TICKS, [encode(self.ticks.make("tick/1", {"time": [now]}, now))])

    async def alive(self, seconds: int, *, job: bool = True, node: bool = True, ticks: bool = True) -> None:
        """So many seconds in which a job steps, a collector sends, and the detectors' host ticks."""
        for _ in range(seconds):
            self.clock.advance(1.0)
            now = self.clock.now()
            if job:
                self.steps += 1
                await self.step(self.steps)
            if node:
                row = {"time": [now], "node": ["node-1"], "gpu": [0], "uuid": ["G"], "simulated": [False]}
                await self.real.publish(Topic.GPU, [encode(self.gpus.make("gpu/1", row, now))])
            if ticks:
                await self.tick()

    async def end(self, topic: Topic) -> int:
        """The offset behind the newest record of `topic`."""
        return (await self.real.ends(topic))[0]

    async def committed(self) -> dict[Topic, int]:
        """How far the detectors have come."""
        return {topic: offsets[0] for topic, offsets in (await self.real.committed(GROUP)).items()}

    async def dealt_with(self) -> None:
        """Wait until everything that is on the bus has been dealt with."""
        for topic in (Topic.TRAIN, Topic.TICKS):
            await self.committed_beyond(await self.end(topic) - 1, topic)

    async def records(self, topic: Topic) -> list[Frame]:
        """Every frame of `topic`."""
        intake, frames = Intake(), list[Frame]()
        if not await self.end(topic):
            return frames
        async with self.real.subscribe([topic], Earliest()) as subscription:
            async for records in subscription:
                frames += [taken.frame for taken in map(intake.take, records) if taken.frame is not None]
                if await subscription.caught_up():
                    break
        return frames

    async def said(self) -> list[Finding]:
        """Every finding, in order, repetitions included."""
        return [finding for frame in await self.records(Topic.FINDINGS) for finding in findings_in(frame)]

    @contextlib.asynccontextmanager
    async def running(self, *detectors: Detector, part: Slice = WHOLE) -> AsyncIterator[DetectorService]:
        """The service over these detectors, until the block ends: then it is cancelled, as by a kill between two
        commits."""
        letters = DeadLetters(self.bus, self.clock, "node/detect.dead")
        service = DetectorService(self.bus, detectors, self.clock, letters, "node/detect", COMMIT_SECONDS, part)
        async with asyncio.timeout(GUARD_SECONDS):
            task = asyncio.create_task(service.run())
            try:
                yield service
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def committed_beyond(self, offset: int, topic: Topic = Topic.TRAIN, *, but_refused: bool = False) -> None:
        """Wait until the detectors' position is behind `offset` (or would be, if the bus took it)."""

        async def beyond() -> bool:
            reached = self.bus.asked_to_commit if but_refused else await self.committed()
            return reached.get(topic, -1) > offset

        await until(beyond)

    async def everything_committed(self, end: int) -> None:
        """Wait until the position of every topic is behind all of its records before `end`."""
        await until(lambda: self._all_committed(end))

    async def _all_committed(self, end: int) -> bool:
        """Whether the position of every topic is behind all of its records before `end`."""
        committed = await self.committed()
        last = dict[Topic, int]()
        async with self.real.subscribe((Topic.GPU, Topic.TRAIN, Topic.TICKS), Earliest()) as subscription:
            async for records in subscription:
                last.update({record.topic: record.offset for record in records if record.offset < end})
                if await subscription.caught_up():
                    break
        return all(committed.get(topic, 0) > offset for topic, offset in last.items())


async def until(is_so: Callable[[], Any]) -> None:
    """Look again and again; the guard around it ends what never comes."""
    async with asyncio.timeout(GUARD_SECONDS):
        while not await is_so():
            await asyncio.sleep(0.002)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Return an empty bus in a folder."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path / "bus", clock) as bus:
        yield Scene(bus, clock)


async def test_what_a_detector_finds_is_published(scene: Scene) -> None:
    """A finding is on the bus, and counted, once its detector has seen the row."""
    async with scene.running(detector_config("nonfinite").build()) as service:
        await scene.step(1)
        last = await scene.step(2, grad_norm=NAN)
        await scene.committed_beyond(last)
    assert [(finding.kind, finding.step) for finding in await scene.said()] == [(FindingKind.NONFINITE, 2)]
    assert (service.stats.findings, service.stats.frames) == ({"nonfinite": 1}, 2)


async def test_an_event_on_which_a_detector_fails_costs_only_that_event(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged; the same detector sees the next events, and the others see all."""
    weak, strong = Echo("weak", fails_at=2), Echo("strong")
    async with scene.running(weak, strong) as service:
        last = [await scene.step(step) for step in range(1, 5)][-1]
        await scene.committed_beyond(last)
    assert (weak.seen, strong.seen) == ([1, 2, 3, 4], [1, 2, 3, 4])
    assert service.stats.errors == {"weak": 1, "strong": 0}
    assert "detector weak failed on telemetry.train" in caplog.text
    assert "step 2 is too much for weak" in caplog.text
    steps = [(finding.detector, finding.step) for finding in await scene.said()]
    assert sorted(steps) == [("strong", step) for step in range(1, 5)] + [("weak", step) for step in (1, 3, 4)]


async def test_a_finding_that_cannot_be_sent_costs_only_itself(scene: Scene) -> None:
    """A text beyond the limit of a frame is counted as an error; its neighbours are said, and no frame is missed."""

    def words(step: int) -> str:
        return "x" * (70_000 if step == 2 else 5)

    echo = Echo("echo", words=words)
    async with scene.running(echo) as service:
        now = scene.clock.now()
        frame = scene.job.make(
            "train/1",
            {"time": [now] * 3, "job": ["j"] * 3, "attempt": ["1"] * 3, "rank": [0] * 3, "step": [1, 2, 3]},
            now,
        )
        await scene.real.publish(Topic.TRAIN, [encode(frame)])
        last = await scene.step(4)
        await scene.committed_beyond(last)
    assert [finding.step for finding in await scene.said()] == [1, 3, 4]
    assert (service.stats.errors, service.stats.findings) == ({"echo": 1}, {"echo": 3})
    assert [run.seq for frame in await scene.records(Topic.FINDINGS) for run in frame.manifest] == [0, 1, 2]


async def test_a_finding_waits_for_a_bus_that_refuses_it(scene: Scene) -> None:
    """While the bus takes no findings the position stays; then the finding comes, and only then the position moves."""
    scene.bus.refusals[Topic.FINDINGS] = 3
    async with scene.running(Echo("echo")) as service:
        offset = await scene.step(1)
        while scene.bus.refused < 3:
            assert (await scene.committed()).get(Topic.TRAIN, 0) <= offset
            assert service.stats.findings == {"echo": 0}
            await asyncio.sleep(0.002)
        await scene.committed_beyond(offset)
        assert [finding.step for finding in await scene.said()] == [1]


async def test_a_position_that_is_refused_is_committed_later(scene: Scene) -> None:
    """A bus that takes no commit for a while stops nobody."""
    scene.bus.commits_refused = 3
    async with scene.running(Echo("echo")):
        last = [await scene.step(step) for step in range(3)][-1]
        await scene.committed_beyond(last)
    assert scene.bus.commits_refused == 0


@pytest.mark.parametrize("breaks_after", range(5))
async def test_reading_goes_on_where_the_bus_went_away(scene: Scene, breaks_after: int) -> None:
    """Every row is seen once, whatever the record at which the bus was away."""
    for step in range(4):
        await scene.step(step)
    scene.bus.reading_breaks_after = breaks_after
    echo = Echo("echo")
    async with scene.running(echo) as service:
        last = await scene.step(4)
        await scene.committed_beyond(last)
    assert echo.seen == [0, 1, 2, 3, 4]
    assert service.intake.ledger.outstanding == 0
    assert scene.bus.reading_breaks_after is None


@contextlib.asynccontextmanager
async def history(folder: Path) -> AsyncIterator[tuple[Scene, int]]:
    """Two minutes of a bus, and the offset of its last record: a run that goes bad twice, one that stops, a collector
    that falls silent and comes back."""
    clock, gpus = ManualClock(), FrameMaker("node-1/gpu")
    async with EmbeddedBus(folder, clock) as bus:
        scene, last = Scene(bus, clock), 0
        for second in range(120):
            now = clock.now()
            if not 20 <= second < 50:
                row = {"time": [now], "node": ["node-1"], "gpu": [0], "uuid": ["G"], "simulated": [True]}
                await bus.publish(Topic.GPU, [encode(gpus.make("gpu/1", row, now))])
            if second < 20:
                await scene.step(second, job="stops")
            await scene.tick()
            last = await scene.step(second, grad_norm=NAN if second in (30, 31, 80) else 1.0)
            clock.advance(1.0)
        yield scene, last


def those_without_lag() -> Iterator[Detector]:
    """Every detector but the one that watches how late this very reader is."""
    return (config.build() for config in all_detectors({}) if type(config).__name__ != "Lag")


@pytest.mark.parametrize("every", [37, 101])
async def test_a_service_killed_anywhere_says_what_one_that_lives_says(tmp_path: Path, every: int) -> None:
    """Killed at every so-manieth record, by turns before and after its position is committed, it says what an
    undisturbed service says, misses nothing, and repeats nothing from before the committed position."""
    async with history(tmp_path / "whole") as (whole, last):
        async with whole.running(*those_without_lag()):
            await whole.committed_beyond(last)
        expected = [finding.id for finding in await whole.said()]
    assert len(expected) == len(set(expected)) >= 5
    async with history(tmp_path / "killed") as (killed, last):
        repeated = []
        for number, stop in enumerate([*range(every, last, every), last + 1]):
            before = [finding.id for finding in await killed.said()]
            all_committed = killed.bus.stop_before is None or number % 2 == 1
            killed.bus.stop_at(stop)
            async with killed.running(*those_without_lag()) as service:
                await killed.bus.stopped.wait() if stop <= last else None
                if number % 2 == 0 or stop > last:
                    await killed.everything_committed(stop)
            assert set(service.stats.errors.values()) == {0}
            again = [finding.id for finding in await killed.said()][len(before) :]
            assert len(again) == len(set(again))
            repeated += [finding for finding in again if finding in before and all_committed]
        found = {finding.id for finding in await killed.said()}
    assert repeated == []
    assert found == set(expected)


async def test_garbage_is_kept_once(scene: Scene) -> None:
    """What is no frame goes to the dead-letter topic with its place and reason, and not again after a restart, not even
    where the position was not committed before the kill."""
    scene.bus.commits_refused = 10**9
    garbage = (await scene.real.publish(Topic.TRAIN, [b"garbage"]))[0]
    for _ in range(3):
        async with scene.running(Echo("echo")):
            await scene.committed_beyond(await scene.step(1), but_refused=True)
    scene.bus.commits_refused = 0
    for _ in range(2):
        async with scene.running(Echo("echo")):
            await scene.committed_beyond(await scene.step(1))
    letters = [row for frame in await scene.records(Topic.DEAD_LETTER) for row in frame.batch.to_pylist()]
    assert [(row["topic"], row["offset"], row["payload"]) for row in letters] == [
        ("telemetry.train", garbage, b"garbage")
    ]
    assert letters[0]["reason"] == "too_short"


async def test_what_is_read_and_not_dealt_with_is_bounded_in_bytes(scene: Scene) -> None:
    """While the bus takes no findings, no more than the bound is read ahead; afterwards everything is dealt with."""
    scene.bus.refusals[Topic.FINDINGS] = 10**9
    big, echo = "x" * 60_000, Echo("echo")
    rows, frames = 200, 8
    size = 0
    for at in range(frames):
        row: dict[str, Any] = {"job": "j", "attempt": "1", "rank": 0, "step": at, "first_nonfinite": big}
        row["time"] = scene.clock.now()
        many = {name: [value] * rows for name, value in row.items()}
        payload = encode(scene.job.make("train/1", many, scene.clock.now()))
        size = len(payload)
        await scene.real.publish(Topic.TRAIN, [payload])
    assert size * frames > IN_FLIGHT_BYTES_MAX > size
    async with scene.running(echo) as service:
        stuck = IN_FLIGHT_BYTES_MAX // size * size

        async def is_full() -> bool:
            return service.stats.in_flight_bytes >= stuck and scene.bus.refused > 2

        await until(is_full)
        assert service.stats.in_flight_bytes == stuck
        assert service.stats.frames == IN_FLIGHT_BYTES_MAX // size
        scene.bus.refusals.clear()
        await scene.committed_beyond(frames)
        assert (service.stats.in_flight_bytes, service.stats.frames) == (0, frames)


async def test_after_a_gap_of_ticks_watching_begins_anew(scene: Scene) -> None:
    """While ticks come, the beginning of the watch stands; where they stop, nobody watched, and it begins anew."""
    echo, expected = Echo("echo"), list[float]()
    start = scene.clock.now()
    for pause in (0.0, 1.0, GAP_SECONDS, GAP_SECONDS + 0.1, 1.0):
        scene.clock.advance(pause)
        if pause > GAP_SECONDS:
            start = scene.clock.now()
        expected.append(start)
        await scene.tick()
    async with scene.running(echo):
        await scene.committed_beyond(await scene.step(1))
    assert [health.watching_since for health in echo.healths] == expected


@pytest.mark.parametrize("name", ["silent_source", "stall", "busy_without_rows"])
async def test_nobody_is_paged_for_silence_while_nantucket_itself_was_down(scene: Scene, name: str) -> None:
    """Rows and ticks stop together for ten minutes, as when this machine was off: what is silent then is no news. Once
    ticks have come for long enough without the rows, it is."""
    gpus = FrameMaker("node-1/gpu")

    async def second(number: int, *, alive: bool) -> None:
        scene.clock.advance(1.0)
        now = scene.clock.now()
        row = {"time": [now], "node": ["node-1"], "gpu": [0], "uuid": ["G"], "simulated": [False]}
        if alive or name == "busy_without_rows":
            payload = encode(gpus.make("gpu/1", row | {"gpu_utilization_percent": [99.0]}, now))
            await scene.real.publish(Topic.GPU, [payload])
        if alive:
            columns = {"time": [now], "job": ["j"], "attempt": ["1"], "rank": [0], "step": [number], "node": ["node-1"]}
            await scene.real.publish(Topic.TRAIN, [encode(scene.job.make("train/1", columns, now))])
        await scene.tick()

    for number in range(10):
        await second(number, alive=True)
    scene.clock.advance(300.0)
    async with scene.running(detector_config(name).build()):
        for number in range(10):
            await second(number, alive=False)
        await scene.committed_beyond(await scene.end(Topic.TICKS) - 1, Topic.TICKS)
        assert await scene.said() == []
        for number in range(160):
            await second(number, alive=False)
        await scene.committed_beyond(await scene.end(Topic.TICKS) - 1, Topic.TICKS)
    assert {finding.kind.value for finding in await scene.said()} == {name}


@pytest.mark.parametrize("name", ["silent_source", "busy_without_rows"])
async def test_what_was_silent_is_not_called_well_because_nobody_watched(scene: Scene, name: str) -> None:
    """After a gap of ticks, in which nothing is known, the trouble that was said stands, and is not said again."""
    gpus = FrameMaker("node-1/gpu")
    async with scene.running(detector_config(name).build()):
        for second in range(400):
            scene.clock.advance(120.0 if second == 200 else 1.0)
            now = scene.clock.now()
            if name == "busy_without_rows" or second < 10:
                row = {"time": [now], "node": ["node-1"], "gpu": [0], "uuid": ["G"], "simulated": [False]}
                payload = encode(gpus.make("gpu/1", row | {"gpu_utilization_percent": [99.0]}, now))
                await scene.real.publish(Topic.GPU, [payload])
            await scene.tick()
        await scene.committed_beyond(await scene.end(Topic.TICKS) - 1, Topic.TICKS)
    assert [(finding.kind.value, finding.state) for finding in await scene.said()] == [(name, FindingState.FIRING)]


async def test_rows_of_before_the_window_are_no_news_at_the_first_start(scene: Scene) -> None:
    """The first start of all looks back over the window and speaks of what it finds there, and of nothing older."""
    await scene.step(1, job="old", grad_norm=NAN)
    scene.clock.advance(FIRST_SECONDS + 60)
    await scene.step(1, job="young", grad_norm=NAN)
    scene.clock.advance(60)
    async with scene.running(detector_config("nonfinite").build()):
        await scene.committed_beyond(await scene.step(1, job="new", grad_norm=NAN))
    assert [finding.job for finding in await scene.said()] == ["young", "new"]


@pytest.mark.parametrize("older_rows", [0, 1])
async def test_the_first_rows_of_a_topic_are_found_however_long_nobody_read(scene: Scene, older_rows: int) -> None:
    """A job that begins and goes bad while the detectors are down for an hour is said when they are back."""
    for _ in range(older_rows):
        await scene.step(1, job="old", grad_norm=NAN)
        scene.clock.advance(2 * WARM_SECONDS)
    await scene.tick()
    async with scene.running(detector_config("nonfinite").build()):
        await scene.committed_beyond(await scene.end(Topic.TICKS) - 1, Topic.TICKS)
        await scene.committed_beyond(await scene.end(Topic.TRAIN) - 1)
    await scene.step(1, job="meanwhile", grad_norm=NAN)
    scene.clock.advance(6 * WARM_SECONDS)
    async with scene.running(detector_config("nonfinite").build()):
        await scene.committed_beyond(await scene.step(1, job="afterwards"))
    assert [finding.job for finding in await scene.said()] == ["meanwhile"]


async def test_ready_means_that_everything_there_was_has_been_read(scene: Scene) -> None:
    """`caught_up` is set once the service has read what was there when it started, and not before."""
    offsets = [await scene.step(step) for step in range(20)]
    scene.bus.stop_at(offsets[-1])
    async with scene.running(Echo("echo")) as service:
        await scene.bus.stopped.wait()
        assert not service.caught_up.is_set()
    scene.bus.stop_before = None
    async with scene.running(Echo("echo")) as service:
        await service.caught_up.wait()
        assert service.stats.frames == 20


async def test_a_stopped_service_leaves_no_task_and_no_open_loop(scene: Scene) -> None:
    """Faust's own threads, tasks and loops are gone when `run` has returned."""
    async with scene.running(Echo("echo")):
        await scene.committed_beyond(await scene.step(1))
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def everything() -> list[Detector]:
    """Every detector, as the role runs them."""
    return [config.build() for config in all_detectors({})]


@pytest.mark.parametrize("away", [30.0, 2 * WARM_SECONDS], ids=["within the window", "beyond it"])
@pytest.mark.parametrize("name", ["stall", "silent_source"])
async def test_trouble_from_before_a_restart_is_ended_and_comes_again_as_new(
    scene: Scene, name: str, away: float
) -> None:
    """However long ago it was said: its end is said of the very same, and the next one is not swallowed."""
    job, node = name != "stall", name != "silent_source"
    async with scene.running(*those_without_lag()):
        await scene.alive(60)
        await scene.alive(150, job=job, node=node)
        await scene.dealt_with()
    (first,) = await scene.said()
    scene.clock.advance(away)
    async with scene.running(*those_without_lag()):
        await scene.alive(150, job=job, node=node)
        await scene.alive(60)
        await scene.alive(600, job=job, node=node)
        await scene.dealt_with()
    findings = await scene.said()
    assert [(item.kind.value, item.state.value) for item in findings] == [
        (name, "firing"),
        (name, "resolved"),
        (name, "firing"),
    ]
    for field in ("job", "attempt", "node", "subject", "onset_time", "simulated"):
        assert getattr(findings[1], field) == getattr(first, field)
    assert findings[2].onset_time != first.onset_time


async def test_a_detector_is_reminded_once_of_what_is_open_and_of_nothing_else(scene: Scene) -> None:
    """Before its first new row it is handed its own findings that were not taken back."""
    async with scene.running(Echo("echo"), Echo("other")):
        await scene.committed_beyond(await scene.step(1))
    scene.clock.advance(10.0)
    echo, fails = Echo("echo"), Echo("unknown")
    async with scene.running(echo, fails):
        await scene.step(2)
        await scene.committed_beyond(await scene.step(3))
    assert [(finding.detector, finding.step) for finding in echo.remembered] == [("echo", 1)]
    assert fails.remembered == []
    assert echo.seen == [1, 2, 3]


@pytest.mark.parametrize("away", [45, 600])
async def test_a_restart_pages_nobody_and_takes_nothing_back(scene: Scene, away: int) -> None:
    """While the detectors were killed, the job and the collector went on: that is read in a moment and is no lag; a
    topic on which little happens is not behind because its newest record is old."""
    event = {"time": [scene.clock.now()], "kind": ["job_start"], "job": ["j"], "attempt": ["1"], "simulated": [False]}
    payload = encode(FrameMaker("node-1/gpu-events").make("event/1", event, scene.clock.now()))
    await scene.real.publish(Topic.EVENTS, [payload])
    async with scene.running(*everything()):
        await scene.alive(60)
        await scene.dealt_with()
    await scene.alive(away, ticks=False)
    async with scene.running(*everything()) as service:
        await service.caught_up.wait()
        for _ in range(5):  # the clock is moved by hand: it must not run away from the reader
            await scene.alive(20)
            await scene.dealt_with()
    assert await scene.said() == []
    assert service.stats.lag_seconds[Topic.EVENTS] == 0.0
    assert set(service.stats.errors.values()) == {0}


@pytest.mark.parametrize("passes", [0.0, CATCH_UP_SECONDS + 1.0], ids=["at once", "for long"])
async def test_only_a_reader_that_is_behind_for_long_says_so(scene: Scene, passes: float) -> None:
    """A minute of log is read in a moment; where that takes more than a minute, the reader is too slow."""
    await scene.alive(40)
    scene.clock.advance(50.0)
    scene.bus.stop_at(30)
    async with scene.running(detector_config("lag").build()):
        await scene.bus.stopped.wait()
        scene.clock.advance(passes)
        scene.bus.stop_before = None
        scene.bus.go_on.set()
        await scene.dealt_with()
    said = [(finding.subject, finding.severity.value) for finding in await scene.said()]
    assert said == (
        []
        if not passes
        else [(f"{name} read by node/detect", "critical") for name in ("telemetry.gpu", "telemetry.train", "ticks")]
    )


@pytest.mark.parametrize("step", [-7200.0, 7200.0], ids=["back", "forwards"])
@pytest.mark.parametrize("well", [True, False], ids=["well", "silent"])
async def test_a_step_of_the_bus_clock_blinds_nobody_and_alarms_nobody(scene: Scene, step: float, well: bool) -> None:
    """What is well across the step is not called silent; what falls silent with it is found within its limit."""
    async with scene.running(detector_config("silent_source").build(), detector_config("stall").build()):
        await scene.alive(30)
        scene.clock.step(step)
        await scene.alive(160, job=well, node=well)
        await scene.dealt_with()
    said = sorted(finding.kind.value for finding in await scene.said())
    assert said == ([] if well else ["silent_source", "stall"])
