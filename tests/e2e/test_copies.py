"""Several copies of the detectors over one bus, and the alert role behind them: nothing lost, nobody paged twice.

Real services over the embedded bus, a real store and a real receiver. The clock is moved by hand, so that a copy which
is ten seconds behind is exactly that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from alerting import AlertService, Store
from detectors import all_detectors
from detectors.agents import DetectorService
from telemetry_bus import FindingState, Topic
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.runtime.clock import ManualClock
from tests.alerting.test_service import alerting
from tests.detectors.test_agents import COMMIT_SECONDS, NAN, Scene, Unwilling, until
from tests.fakes.webhook_server import WebhookServer

FINITE_STEPS = 21
"""One more than end an episode."""
LAG_SECONDS = 10
"""How far the copy that lags is behind."""


class Copy:
    """A detector service of its own, on a bus of its own hands: it can be held up, killed and told from others."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.name, self.bus, self._scene = name, Unwilling(scene.real), scene
        letters = DeadLetters(self.bus, scene.clock, f"{name}/detect.dead")
        detectors = [config.build() for config in all_detectors({})]
        self.service = DetectorService(self.bus, detectors, scene.clock, letters, f"{name}/detect", COMMIT_SECONDS)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Copy:
        """Start, and wait until it has read what was there."""
        self._task = asyncio.create_task(self.service.run(), name=f"detectors of {self.name}")
        async with asyncio.timeout(30):
            await self.service.caught_up.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Kill it between two commits."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def has_read(self) -> None:
        """Wait until this copy has dealt with all that is on the bus, the newest of which it was there for."""
        for topic in (Topic.TRAIN, Topic.GPU, Topic.TICKS):
            end = await self._scene.end(topic)

            async def beyond(topic: Topic = topic, end: int = end) -> bool:
                return self.bus.asked_to_commit.get(topic, 0) >= end

            if end:
                await until(beyond)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Return an empty bus in a folder."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path / "bus", clock) as bus:
        yield Scene(bus, clock)


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    """Return a running receiver that takes everything."""
    with WebhookServer() as server:
        yield server


@contextlib.asynccontextmanager
async def paged(scene: Scene, folder: Path, hook: WebhookServer) -> AsyncIterator[AlertService]:
    """Run the alert role."""
    async with Store(folder / "alerts.db") as store, alerting(scene.real, store, hook) as service:
        yield service


async def all_taken(scene: Scene, service: AlertService) -> None:
    """Wait until the alert role has taken every finding on the bus, and nothing waits in its outbox."""
    said = len(await scene.said())

    async def taken() -> bool:
        stats = service.stats
        return stats.findings_total + stats.findings_again_total >= said

    await until(taken)


async def steps(scene: Scene, count: int, *, job: str = "j", grad_norm: float = 1.0) -> int:
    """``count`` steps of ``job``, a second apart; the offset of the first one."""
    first = None
    for _ in range(count):
        scene.clock.advance(1.0)
        scene.steps += 1
        offset = await scene.step(scene.steps, job=job, grad_norm=grad_norm)
        first = offset if first is None else first
        await scene.tick()
    assert first is not None
    return first


def told(hook: WebhookServer) -> list[tuple[str, str]]:
    """What the receiver was told, in order: status, and the paging key's last part (the episode)."""
    return [(a.body["status"], a.body["incident"]["paging_key"].rpartition("/")[2]) for a in hook.arrivals]


async def test_two_copies_say_the_same_under_the_same_ids_and_page_once(
    scene: Scene, tmp_path: Path, hook: WebhookServer
) -> None:
    """What the second copy says changes nothing: neither a page, nor an update, nor an end is sent twice."""
    async with paged(scene, tmp_path, hook) as service, Copy(scene, "a") as one, Copy(scene, "b") as two:
        await steps(scene, 5)
        await steps(scene, 3, grad_norm=NAN)
        await steps(scene, FINITE_STEPS)
        await steps(scene, 3, grad_norm=NAN)
        for copy in (one, two):
            await copy.has_read()
        await hook.arrived(3)
        await all_taken(scene, service)
    assert told(hook) == [("firing", "1"), ("resolved", "1"), ("firing", "2")]
    times_said = Counter(finding.id for finding in await scene.said())
    assert set(times_said.values()) == {2}


async def test_a_copy_that_lags_does_no_harm(scene: Scene, tmp_path: Path, hook: WebhookServer) -> None:
    """It says ten seconds later what is long over: the end of the first episode does not end the second."""
    async with paged(scene, tmp_path, hook) as service, Copy(scene, "a") as one, Copy(scene, "slow") as slow:
        slow.bus.stop_at(await steps(scene, 5))
        await steps(scene, 2, grad_norm=NAN)
        await steps(scene, FINITE_STEPS)
        await steps(scene, LAG_SECONDS, grad_norm=NAN)
        await one.has_read()
        await hook.arrived(3)
        slow.bus.stop_before = None
        slow.bus.go_on.set()
        await slow.has_read()
        await all_taken(scene, service)
        await steps(scene, FINITE_STEPS)
        await hook.arrived(4)
        for copy in (one, slow):
            await copy.has_read()
        await all_taken(scene, service)
    assert told(hook) == [("firing", "1"), ("resolved", "1"), ("firing", "2"), ("resolved", "2")]


async def test_a_copy_that_starts_while_trouble_is_open_takes_it_over(
    scene: Scene, tmp_path: Path, hook: WebhookServer
) -> None:
    """The one that began it is killed, the one that came later says its end: one incident, told once, ended once."""
    async with paged(scene, tmp_path, hook) as service:
        async with Copy(scene, "a") as one:
            await steps(scene, 5)
            await steps(scene, 3, grad_norm=NAN)
            await one.has_read()
            late = await Copy(scene, "late").__aenter__()
        try:
            await steps(scene, 2, grad_norm=NAN)
            await steps(scene, FINITE_STEPS)
            await late.has_read()
            await hook.arrived(2)
            await all_taken(scene, service)
        finally:
            await late.__aexit__()
    assert told(hook) == [("firing", "1"), ("resolved", "1")]


async def test_a_source_that_falls_silent_is_one_incident_of_all_copies(
    scene: Scene, tmp_path: Path, hook: WebhookServer
) -> None:
    """What watches Nantucket itself names its trouble by its subject, whichever copy says it."""
    async with paged(scene, tmp_path, hook) as service, Copy(scene, "a") as one, Copy(scene, "b") as two:
        for node in (True, False, True):
            await scene.alive(25, node=node)
        for copy in (one, two):
            await copy.has_read()
        await all_taken(scene, service)
    said = [finding for finding in await scene.said() if finding.kind.value == "silent_source"]
    assert {finding.subject for finding in said} == {"node-1/gpu"}
    assert Counter(finding.state for finding in said) == {FindingState.FIRING: 2, FindingState.RESOLVED: 2}
    assert len({finding.id for finding in said}) == 2


@pytest.mark.parametrize("seed", [1, 2])
async def test_copies_that_come_and_go_lose_no_trouble_and_page_none_twice(
    scene: Scene, tmp_path: Path, hook: WebhookServer, seed: int
) -> None:
    """Between any two jobs' troubles one of two copies is killed and another one is started; one always reads."""
    chance = random.Random(seed)
    jobs = [f"job-{number}" for number in range(8)]
    async with paged(scene, tmp_path, hook) as service:
        running = [await Copy(scene, "first").__aenter__(), await Copy(scene, "second").__aenter__()]
        try:
            for job in jobs:
                await steps(scene, chance.randrange(1, 4), job=job)
                await steps(scene, chance.randrange(1, 4), job=job, grad_norm=NAN)
                await running.pop(chance.randrange(2)).__aexit__()
                await steps(scene, chance.randrange(1, 4), job=job, grad_norm=NAN)
                running.append(await Copy(scene, f"for {job}").__aenter__())
                if chance.random() < 0.5:
                    await steps(scene, FINITE_STEPS, job=job)
            await steps(scene, 1, job="healthy")  # so that the newest copy, too, has something to read
            for copy in running:
                await copy.has_read()
            await all_taken(scene, service)
            await hook.took(len(jobs))
        finally:
            for copy in running:
                await copy.__aexit__()
    firing = Counter(a.body["incident"]["paging_key"] for a in hook.arrivals if a.body["status"] == "firing")
    # (A job that has recovered and is left alone stalls in the end, which is trouble of its own.)
    assert {key: count for key, count in firing.items() if "/nonfinite/" in key} == {
        f"job/{job}/attempt/1/nonfinite/1": 1 for job in jobs
    }, f"seed {seed}"
    assert max(Counter(arrival.id for arrival in hook.arrivals).values()) == 1, f"seed {seed}"
