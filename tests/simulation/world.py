"""A small fleet whose bus goes away and comes back, made from one seed.

Jobs train on two nodes each and fall ill and well again at random; nodes have clocks of their own; while the bus is
away their own detectors speak (the real ripcord) to a gateway that pages (the real pager); reports come twice; the
gateway and collectors are started anew; nodes come back one by one; two copies of the detectors come and go, and the
real alert role tells a real receiver. Time is virtual: a second passes when :meth:`World.pass_second` is called.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from alerting import AlertService, Pager, PagerOptions, Routing, Store
from collectors.moment import Moment
from collectors.ripcord import Ripcord
from collectors.ripcord_notes import Said
from detectors import Detector, ReaderHealth, detector_config
from detectors.agents import DetectorService
from telemetry_bus import Finding, Frame, FrameMaker, Topic, encode
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.outlet import Report
from telemetry_bus.runtime.clock import ManualClock
from tests.alerting.scenes import CLOCK, settings
from tests.alerting.test_service import QUICK, alerting
from tests.fakes.webhook_server import WebhookServer

NAN = float("nan")
COMMIT_SECONDS = 0.01
WELL_SECONDS_MIN = 40
"""Between two troubles of a job: 20 finite steps end the first one, and clocks that are within the tolerance of 5 s are
not corrected, so that the second must not begin within some seconds of that."""


@dataclass(frozen=True)
class Plan:
    """What happens, second by second: which jobs are ill when, and when the bus is away."""

    seed: int
    seconds: int
    ill: dict[str, tuple[range, ...]]
    outages: tuple[range, ...]

    @classmethod
    def of(cls, seed: int, *, jobs: int = 4, seconds: int = 240) -> Plan:
        """The plan of ``seed``."""
        chance = random.Random(seed)
        ill: dict[str, tuple[range, ...]] = {}
        for number in range(jobs):
            at, times = chance.randrange(5, 60), []
            while at < seconds - 90:  # so that the last trouble, too, has its end
                end = at + chance.randrange(3, 60)
                times.append(range(at, end))
                at = end + WELL_SECONDS_MIN + chance.randrange(0, 60)
            ill[f"job-{number}"] = tuple(times)
        first = chance.randrange(10, 60)
        second = first + 50 + chance.randrange(20, 40)
        outages = (range(first, first + chance.randrange(5, 50)), range(second, second + chance.randrange(5, 50)))
        return cls(seed, seconds, ill, outages)

    def is_away(self, second: int) -> bool:
        """Whether nobody reaches the bus."""
        return any(second in outage for outage in self.outages)


@dataclass
class LocalDetector:
    """A detector as a collector runs it."""

    inner: Detector

    @property
    def topics(self) -> frozenset[Topic]:
        """What it wants."""
        return self.inner.topics

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Look at a frame."""
        return self.inner.observe(frame)

    def tick(self, now: float) -> Sequence[Finding]:
        """Let time pass."""
        return self.inner.tick(now, ReaderHealth())

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before."""
        self.inner.remember(finding, now)


class Node:
    """A node of the fleet: a clock that is wrong, ranks of jobs, and ripcord. It keeps what it cannot send."""

    def __init__(
        self, name: str, clock: ManualClock, offset: float, folder: Path, report: Callable[[bytes], Awaitable[Report]]
    ) -> None:
        self.name, self._clock, self._offset = name, clock, offset
        self._boot = uuid.uuid4()
        self._makers: dict[str, FrameMaker] = {}
        self.kept: list[Frame] = []
        self.is_away = False
        folder.mkdir()
        self._folder, self._report = folder, report
        self.ripcord = self._new()

    def _new(self) -> Ripcord:
        detectors = [LocalDetector(detector_config("nonfinite").build())]
        return Ripcord(detectors, self._report, self._moment, node=self.name, folder=self._folder, sleep=_at_once)

    async def restart(self) -> None:
        """The collector is started anew: what it knows is what it has written down."""
        await self.ripcord.__aexit__(None, None, None)
        self.ripcord = await self._new().__aenter__()

    def _moment(self) -> Moment:
        return Moment(self._boot, self._clock.now() + self._offset, self._clock.monotonic())

    def step(self, job: str, rank: int, step: int, grad_norm: float) -> Frame:
        """One step of one rank, as the node's own clock sees it."""
        maker = self._makers.setdefault(f"{job}/1/{rank}/train", FrameMaker(f"{job}/1/{rank}/train"))
        now = self._moment().wall
        columns = {
            "time": [now], "job": [job], "attempt": ["1"], "rank": [rank], "step": [step], "scope": ["shard"],
            "world_size": [2], "loss": [1.0], "grad_norm": [grad_norm], "node": [self.name],
        }  # fmt: skip
        frame = maker.make("train/1", columns, now)
        self.ripcord.seen(Topic.TRAIN, frame, away=self.is_away)
        return frame

    def unsaid(self) -> int:
        """Findings that neither the bus nor a gateway has taken."""
        return sum(kept.said is Said.NOT_YET for kept in self.ripcord._notes)


async def _at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


@dataclass
class World:
    """Everything of one plan. Used inside ``async with``."""

    plan: Plan
    folder: Path
    hook: WebhookServer
    clock: ManualClock = field(default_factory=ManualClock)
    second: int = 0
    restarted: set[int] = field(default_factory=set)
    """Seconds at which the gateway was started anew while the bus was away: it knows nothing from before."""
    told_in_the_outage: dict[int, Counter[str]] = field(default_factory=dict)
    """By the second in which the bus came back: how many pages of each job the receiver had taken by then."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.plan.seed + 1)
        self.bus = EmbeddedBus(self.folder / "bus", self.clock)
        self.reachable = True
        self._stack = AsyncExitStack()
        self._ticks = FrameMaker("bus/ticks")
        self._copies: list[tuple[DetectorService, asyncio.Task[None]]] = []
        offsets = [0.0, self.chance.choice([-2.0, 1.0]), self.chance.choice([-90.0, 40.0]), 3e8]
        self.nodes = [
            Node(f"node-{number}", self.clock, offset, self.folder / f"node-{number}", self.report)
            for number, offset in enumerate(offsets)
        ]
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start everybody."""
        await self._stack.enter_async_context(self.bus)
        store = await self._stack.enter_async_context(Store(self.folder / "alerts.db"))
        self.alerts: AlertService = await self._stack.enter_async_context(alerting(self.bus, store, self.hook))
        for node in self.nodes:
            await node.ripcord.__aenter__()
        await self._new_gateway()
        self._follow()
        await self._start_copy()
        await self._start_copy()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop everybody."""
        while self._copies:
            await self._kill_copy(0)
        await self._unfollow()
        for node in self.nodes:
            await node.ripcord.__aexit__(None, None, None)
        await self.pager.__aexit__(None, None, None)
        await self._stack.aclose()

    def pages(self) -> Counter[str]:
        """By job: how many pages the receiver has taken, each id once, as receivers do."""
        told = (body for body in self.hook.taken if body["status"] == "firing")
        return Counter(str(body["incident"]["job"]) for body in told)

    async def report(self, payload: bytes) -> Report:
        """The way up for findings: the bus where it is reached, else the gateway's pager; now and then twice."""
        if self.reachable:
            await self.bus.publish(Topic.FINDINGS, [payload])
            return Report(published=True)
        receipts = await self.pager.page(payload)
        if self.chance.random() < 0.3:
            assert await self.pager.page(payload) == receipts
        return Report(published=False, receipts=receipts)

    async def _publish(self, topic: Topic, frames: Sequence[Frame]) -> None:
        if not self.reachable:
            raise BusUnavailable(self.bus.url, "publish", OSError("away"))
        await self.bus.publish(topic, [encode(frame) for frame in frames])

    async def pass_second(self) -> None:
        """One second of everybody's life."""
        self.second += 1
        self.clock.advance(1.0)
        if self.plan.is_away(self.second) and self.reachable:
            await self._go_away()
        elif not self.plan.is_away(self.second) and not self.reachable:
            await self._come_back()
        await self._work()
        if self.reachable:
            now = self.clock.now()
            await self._publish(Topic.TICKS, [self._ticks.make("tick/1", {"time": [now]}, now)])
        if self.chance.random() < 0.03:
            await self.chance.choice(self.nodes).restart()
        if self.chance.random() < 0.03:
            await self._start_copy()
            await self._kill_copy(self.chance.randrange(2))
        if not self.reachable and self.chance.random() < 0.02:
            await self.told_by_gateway()
            await self.pager.__aexit__(None, None, None)
            await self._new_gateway()
            self.restarted.add(self.second)

    async def _work(self) -> None:
        live: list[Frame] = []
        for number, (job, times) in enumerate(self.plan.ill.items()):
            is_ill = any(self.second in time for time in times)
            for rank in (0, 1):
                node = self.nodes[(number + rank) % len(self.nodes)]
                frame = node.step(job, rank, self.second, NAN if is_ill else 1.0)
                (node.kept if node.is_away else live).append(frame)
        if live:
            await self._publish(Topic.TRAIN, live)

    async def _go_away(self) -> None:
        await self._unfollow()
        self.reachable = False
        for node in self.nodes:
            node.is_away = True
            node.ripcord.doubt()

    async def _come_back(self) -> None:
        """Each node says its findings first, then lives on; its backlog comes later. The others are not waited for."""
        await self.told_by_gateway()
        self.told_in_the_outage[self.second] = self.pages()
        self.reachable = True
        self._follow()
        for node in self.chance.sample(self.nodes, len(self.nodes)):
            await until(node.ripcord.publish_kept)
            node.is_away = False
            if self.chance.random() < 0.5:
                await self._work_of_a_moment()
        await self._publish(Topic.BACKLOG, [frame for node in self.nodes for frame in node.kept])
        for node in self.nodes:
            node.kept.clear()

    async def _work_of_a_moment(self) -> None:
        """Between two nodes' return the detectors read what is there."""
        for _ in range(self.chance.randrange(1, 20)):
            await asyncio.sleep(0.002)

    async def told_by_gateway(self) -> None:
        """Wait until the gateway has answered every report."""

        async def told() -> bool:
            return all(node.unsaid() == 0 for node in self.nodes)

        await until(told)

    async def _new_gateway(self) -> None:
        receivers = [settings(self.hook, "ops0").build(CLOCK)]  # the receiver looks at the time of the signature
        self.pager = Pager(receivers, Routing(), self.clock, PagerOptions(backoff=QUICK))
        await self.pager.__aenter__()

    def _follow(self) -> None:
        self._following = asyncio.create_task(self.pager.follow(self.bus), name="gateway follows the bus")

    async def _unfollow(self) -> None:
        task, self._following = self._following, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _start_copy(self) -> None:
        letters = DeadLetters(self.bus, self.clock, "detect/dead")
        detectors = [detector_config("nonfinite").build()]
        source = f"copy-{self.second}-{len(self._copies)}/detect"
        service = DetectorService(self.bus, detectors, self.clock, letters, source, COMMIT_SECONDS)
        task = asyncio.create_task(service.run(), name=source)
        await service.caught_up.wait()
        self._copies.append((service, task))

    async def _kill_copy(self, number: int) -> None:
        _, task = self._copies.pop(number)
        task.cancel()
        await asyncio.wait([task])

    async def settle(self) -> None:
        """Wait until the detectors have read all, and the alert role has taken all that they said."""
        before = (-1, -1)
        while True:
            for service, _ in self._copies:
                while service.stats.in_flight_bytes:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            taken = self.alerts.stats.findings_total + self.alerts.stats.findings_again_total
            end = (await self.bus.ends(Topic.FINDINGS)).get(0, 0)
            if (taken, end) == before:
                return
            before = (taken, end)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again; what never comes is ended by the test's own limit."""
    while not await is_so():
        await asyncio.sleep(0.002)
