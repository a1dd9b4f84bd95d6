"""Many nodes in one process, for ``bench spool --nodes``: each with a spool and a link of its own.

Four hours are compressed: a node's spool holds a frame for every minute of them (240) instead of one for every second
(14,400), each as large as a real one (8 GPUs). Everything else is at its own pace: when it is told to, every node
sends a live frame a second over a link of its own, and behind these its spool, as ``nantucket collect`` does.
"""

import argparse
import asyncio
import json
import resource
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from collectors.framing import Framer
from collectors.simulated import SimulatedFleet
from collectors.source import GpuRows
from collectors.spool import Spool, SpoolConfig
from collectors.upward import Upward
from telemetry_bus import Frame, Outlet, OutletOptions, Topic, encode, open_outlet
from telemetry_bus.runtime.clock import SystemClock

FRAME_SECONDS = 60.0
HOURS = 4.0
FRAMES = int(HOURS * 3600 / FRAME_SECONDS)
GPUS = 8
OPEN_AT_ONCE = 16


@dataclass(slots=True)
class Node:
    """One node: its rows, its spool, and what it measures of its live frames."""

    name: str
    spool: Spool
    framer: Framer
    rows: GpuRows
    outlet: Outlet
    live_seconds: list[float] = field(default_factory=list)
    spooled: int = 0

    def frame(self, now: float) -> Frame:
        """One reading at ``now``, under this node's name."""
        rows = GpuRows([(self.name, GPUS)], self.rows.gpu, self.rows.uuid, True, self.rows.metrics)
        return next(iter(self.framer.gpu_frames(rows, now)))

    async def fill(self, now: float) -> None:
        """Spool the four hours before ``now``, as a collector did that had no bus."""
        moment = self.spool.moment()

        async def keep(frame: Frame) -> None:
            await self.spool.append(
                Topic.GPU, encode(frame), key=self.name, rows=frame.rows, simulated=True, stamped=moment
            )

        frames = [self.frame(now - HOURS * 3600 + FRAME_SECONDS * number) for number in range(FRAMES)]
        await asyncio.gather(*(keep(frame) for frame in frames))
        self.spooled = self.spool.depth.bytes


async def run(options: argparse.Namespace) -> None:
    """Fill the spools, wait for the word, and send until all are empty."""
    clock = SystemClock()
    async with AsyncExitStack() as stack, SimulatedFleet(GPUS).build() as fleet:
        rows = (await fleet.read(clock.now())).gpus
        assert rows is not None
        limit = asyncio.Semaphore(OPEN_AT_ONCE)

        async def make(index: int) -> Node:
            name = f"node-{index:05d}"
            async with limit:
                config = SpoolConfig(Path(options.folder) / name)
                spool = await stack.enter_async_context(config.build(clock))
                outlet = open_outlet(options.gateway, clock, OutletOptions(node=name))
                node = Node(name, spool, Framer(None), rows, await stack.enter_async_context(outlet))
                await node.fill(clock.now())
            return node

        nodes = await asyncio.gather(*(make(index) for index in range(options.first, options.first + options.nodes)))
        _say({"spooled": sum(node.spooled for node in nodes), "frames": FRAMES * len(nodes)})
        await asyncio.to_thread(sys.stdin.readline)
        began = clock.monotonic()
        async with asyncio.TaskGroup() as tasks:
            drained = [tasks.create_task(live(node, clock, began)) for node in nodes]
        live_seconds = [seconds for node in nodes for seconds in node.live_seconds]
        _say({"drained": [task.result() for task in drained], "live_seconds": live_seconds})


async def live(node: Node, clock: SystemClock, began: float) -> float:
    """Send a live frame a second while the spool is sent behind them; after how many seconds it was empty."""
    async with Upward(node.outlet, node.spool, clock, node=node.name, simulated=True) as upward:
        due = clock.monotonic() + float(np.random.default_rng(int(node.name[-5:])).uniform(0.0, 1.0))
        while node.spool.depth.frames or upward.away:
            await asyncio.sleep(max(0.0, due - clock.monotonic()))
            sent = clock.monotonic()
            await upward.publish(Topic.GPU, node.frame(clock.now()))
            node.live_seconds.append(clock.monotonic() - sent)
            due = max(due + 1.0, clock.monotonic())
        return clock.monotonic() - began


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Be ``--nodes`` nodes, the first of which is number ``--first``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    del soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
