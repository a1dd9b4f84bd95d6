"""What the readers of ``bench fanout`` read: rows whose step and node say when they were published.

It publishes until it is stopped, and then says how many frames it has published in how long.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import time

import numpy as np

from telemetry_bus import FrameMaker, Topic, encode, open_bus
from telemetry_bus.runtime.clock import SystemClock

STAMP_SCALE = 1_000_000
"""A stamp is UTC microseconds: as a step of the job, and, between two letters, as the name of its node."""


async def publish(url: str, hz: float, ranks: int, gpus: int) -> None:
    """Rows of one job ``hz`` times a second and a frame of ``gpus`` GPUs each second, until SIGTERM."""
    stopped, clock = asyncio.Event(), SystemClock()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    job, fleet, frames, begun = FrameMaker("bench/1/0/train"), FrameMaker("bench/gpu"), 0, time.monotonic()
    async with open_bus(url, clock) as bus:
        print(json.dumps({"publishing": True}), flush=True)
        while not stopped.is_set():
            now = clock.now()
            await bus.publish(Topic.TRAIN, [encode(job.make("train/1", _steps(now, ranks), now))])
            if frames % max(1, round(hz)) == 0 and gpus:
                await bus.publish(Topic.GPU, [encode(fleet.make("gpu/1", _gpus(now, gpus), now))])
            frames += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, begun + frames / hz - time.monotonic())):
                    await stopped.wait()
    print(json.dumps({"frames": frames, "seconds": time.monotonic() - begun}), flush=True)


def _steps(now: float, ranks: int) -> dict[str, object]:
    stamp = int(now * STAMP_SCALE)
    rows = {"job": "bench", "attempt": "1", "node": f"s{stamp}s", "step": stamp, "loss": 2.0, "grad_norm": 1.0}
    return {
        "time": [now] * ranks,
        "rank": list(range(ranks)),
        **{name: [value] * ranks for name, value in rows.items()},
    }


def _gpus(now: float, gpus: int) -> dict[str, object]:
    random = np.random.default_rng(int(now))
    numbers = np.arange(gpus)
    return {
        "time": np.full(gpus, now),
        "node": [f"node-{number // 8}" for number in numbers],
        "gpu": numbers % 8,
        "simulated": np.ones(gpus, np.bool_),
        "gpu_utilization_percent": random.uniform(60.0, 100.0, gpus).astype(np.float32),
        "power_watts": random.uniform(400.0, 700.0, gpus).astype(np.float32),
        "temperature_celsius": random.uniform(50.0, 80.0, gpus).astype(np.float32),
    }


def main() -> None:
    """Read the arguments and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bus", required=True)
    parser.add_argument("--hz", type=float, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(publish(given.bus, given.hz, given.ranks, given.gpus))


if __name__ == "__main__":
    main()
