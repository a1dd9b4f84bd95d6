"""The generator of `bench pipeline`, a process of its own: racks that send their merged second over links of their own.

Each rack has its own phase within the second. Among them are jobs that turn NaN and nodes that fall silent, each at a
random moment; what was injected goes to standard output as JSON lines, stamped as it is sent.
"""

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.bench.racks import Pool, Rack
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.frames import Frame, FrameMaker, encode
from telemetry_bus.gateway import GatewayOutlet
from telemetry_bus.outlet import OutletOptions
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic

AGAIN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Order:
    """What this process is to send: ``racks`` racks from number ``first`` on, of ``gpus`` GPUs each.

    ``jobs`` jobs turn NaN and ``silent`` nodes fall silent between ``calm`` and ``until`` seconds.
    """

    url: str
    token: str
    first: int
    racks: int
    gpus: int
    metrics: int
    hz: float
    seconds: float
    jobs: int
    silent: int
    calm: float
    until: float
    seed: int
    steps_before: float = 1e9
    """For how many seconds before its end a job steps."""


@dataclass(slots=True)
class Tally:
    """What was sent. ``late`` counts seconds that began after the one before was not yet durable."""

    frames: int = 0
    rows: int = 0
    late: int = 0
    slowest_seconds: float = 0.0
    injected: list[dict[str, Any]] = field(default_factory=list)


class Sender:
    """The racks of one process."""

    def __init__(self, order: Order) -> None:
        self.order, self.tally, self.clock = order, Tally(), SystemClock()
        self.rng = np.random.default_rng(order.seed)
        self.pool = Pool.of(self.rng)
        self.racks = [
            Rack(number, order.gpus, order.metrics, f"region-{number % 4}", self.rng)
            for number in range(order.first, order.first + order.racks)
        ]
        self._silent: dict[int, list[tuple[float, int]]] = {}
        for rack, moment in zip(self._some_racks(order.silent), self._moments(order.silent), strict=True):
            node = int(self.rng.integers(len(self.racks[rack].nodes)))
            self._silent.setdefault(rack, []).append((moment, node))

    def _some_racks(self, count: int) -> list[int]:
        return [int(at) for at in self.rng.permutation(len(self.racks))[:count]]

    def _moments(self, count: int) -> list[float]:
        order = self.order
        return [float(at) for at in self.rng.uniform(order.calm, max(order.calm, order.until), count)]

    async def run(self) -> None:
        """Send for as long as was ordered."""
        order, options = self.order, OutletOptions(node="bench", token=Secret(self.order.token))
        phases = self.rng.uniform(0.0, 1.0 / order.hz, len(self.racks)).tolist()
        moments = self._moments(order.jobs)
        homes = [int(at) for at in self.rng.integers(0, len(self.racks), order.jobs)]
        async with contextlib.AsyncExitStack() as stack:
            outlets = [
                await stack.enter_async_context(GatewayOutlet(order.url, self.clock, options)) for _ in self.racks
            ]
            begun = self.clock.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for at, outlet in enumerate(outlets):
                    tasks.create_task(self._rack(at, outlet, begun + phases[at]))
                for number, (home, moment) in enumerate(zip(homes, moments, strict=True)):
                    tasks.create_task(self._job(order.first * 1000 + number, outlets[home], begun, moment))

    async def _rack(self, at: int, outlet: GatewayOutlet, begun: float) -> None:
        due, period, rack = begun, 1.0 / self.order.hz, self.racks[at]
        silences = list(self._silent.get(at, ()))
        for _ in range(round(self.order.seconds * self.order.hz)):
            await asyncio.sleep(max(0.0, due - self.clock.monotonic()))
            silent = [node for moment, node in silences if due - begun >= moment]
            for moment, node in [item for item in silences if item[1] in silent and due - begun - item[0] < period]:
                self._tell({"silent": f"{rack.nodes[node]}/gpu", "after": moment})
            frame = rack.second(self.clock.now(), self.pool, silent)
            took = await self._publish(outlet, Topic.GPU, frame, rack.name)
            self.tally.slowest_seconds = max(self.tally.slowest_seconds, took)
            due += period
            self.tally.late += self.clock.monotonic() > due
            self.tally.rows += frame.rows

    async def _job(self, number: int, outlet: GatewayOutlet, begun: float, moment: float) -> None:
        """Healthy steps once a second, then one that is not; nothing after it."""
        name = f"bench-{number:06d}"
        maker = FrameMaker(f"{name}/1/0/train")
        await asyncio.sleep(max(0.0, begun + moment - self.order.steps_before - self.clock.monotonic()))
        for step in range(1_000_000):
            bad = self.clock.monotonic() - begun >= moment
            now = self.clock.now()
            number_of = float("nan") if bad else 1.0
            row = {
                "time": [now], "job": [name], "attempt": ["1"], "rank": [0], "world_size": [1], "step": [step],
                "scope": ["shard"], "loss": [number_of], "grad_norm": [number_of], "nonfinite": [7 if bad else 0],
                "first_nonfinite": ["blocks.0.w" if bad else None],
            }  # fmt: skip
            if bad:
                self._tell({"job": name, "step": step, "time": now, "monotonic_ns": time.monotonic_ns()})
            await self._publish(outlet, Topic.TRAIN, maker.make("train/1", row, now), name)
            if bad:
                return
            await asyncio.sleep(1.0)

    async def _publish(self, outlet: GatewayOutlet, topic: Topic, frame: Frame, key: str) -> float:
        """Until it is durable; the seconds that took."""
        begun = self.clock.monotonic()
        payload = encode(frame)
        while True:
            try:
                await outlet.publish(topic, [payload], key)
            except BusUnavailable:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            self.tally.frames += 1
            return self.clock.monotonic() - begun

    def _tell(self, injected: dict[str, Any]) -> None:
        self.tally.injected.append(injected)
        sys.stdout.write(json.dumps(injected) + "\n")
        sys.stdout.flush()


async def send(order: Order) -> None:
    """Make the racks, say so, wait for ``go``, send, and say what was sent."""
    sender = Sender(order)
    print(json.dumps({"made": len(sender.racks)}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    begun = time.process_time()
    await sender.run()
    tally, cpu = sender.tally, round(time.process_time() - begun, 2)
    said = {"done": True, "frames": tally.frames, "rows": tally.rows, "late": tally.late, "cpu_seconds": cpu}
    print(json.dumps(said | {"slowest_seconds": round(tally.slowest_seconds, 3)}), flush=True)


def main() -> None:
    """The first line of standard input is the order, as JSON."""
    asyncio.run(send(Order(**json.loads(sys.stdin.readline()))))


if __name__ == "__main__":
    main()
