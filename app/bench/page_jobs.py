"""The jobs of ``bench page``, in a process of their own: each trains a little, then reports one bad step.

Every job uses the SDK as a training loop would. Just before ``run.log`` of the bad step its moment is stamped; the
stamps go to standard output as JSON lines. With ``--metrics`` the same moments also appear as Prometheus metrics, so
that a peer which scrapes is measured on the same events.
"""

import argparse
import asyncio
import json
import random
import sys
import time

from prometheus_client import CollectorRegistry, Gauge, start_http_server

import nantucket

HEALTHY_STEPS = 20
STEP_SECONDS = 0.05
"""Twenty steps a second, faster than any large model."""


class Scraped:
    """What a scraper sees of the jobs: one gauge, 1 from the bad step on."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.nonfinite = Gauge(
            "train_nonfinite_elements", "Non-finite gradient elements.", ["job"], registry=self.registry
        )


async def train(index: int, starts_in: float, scraped: Scraped) -> None:
    """One job: healthy steps, the bad one, and its end."""
    await asyncio.sleep(starts_in)
    name = f"bench-{index:05d}"
    gauge = scraped.nonfinite.labels(name)
    run = await asyncio.to_thread(nantucket.init, job=name, rank=0, world_size=1)
    for step in range(HEALTHY_STEPS):
        run.log(step=step, loss=2.0 - 0.01 * step, grad_norm=1.0, nonfinite=0, scope="shard")
        gauge.set(0)
        await asyncio.sleep(STEP_SECONDS)
    stamp = {"job": name, "step": HEALTHY_STEPS, "time_unix": time.time(), "monotonic_ns": time.monotonic_ns()}
    gauge.set(1)
    run.log(
        step=HEALTHY_STEPS,
        loss=float("nan"),
        grad_norm=float("nan"),
        nonfinite=7,
        first_nonfinite="blocks.0.w",
        scope="shard",
    )
    sys.stdout.write(json.dumps(stamp) + "\n")
    sys.stdout.flush()
    await asyncio.sleep(4 * STEP_SECONDS)
    await asyncio.to_thread(run.finish)


async def run_all(events: int, seconds: float, seed: int, scraped: Scraped) -> None:
    """All jobs, each at a random moment within ``seconds``."""
    moments = random.Random(seed)
    async with asyncio.TaskGroup() as tasks:
        for index in range(events):
            tasks.create_task(train(index, moments.uniform(0.0, seconds), scraped))


def main() -> None:
    """Run the jobs once standard input says ``go``, and say ``done`` when all have reported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--metrics", action="store_true", help="also serve the moments to a scraper, on a free port")
    options = parser.parse_args()
    scraped = Scraped()
    if options.metrics:
        server, _ = start_http_server(0, addr="127.0.0.1", registry=scraped.registry)
        print(json.dumps({"metrics_port": server.server_port}), flush=True)
    sys.stdin.readline()
    asyncio.run(run_all(options.events, options.seconds, options.seed, scraped))
    print(json.dumps({"done": True}), flush=True)
    sys.stdin.readline()  # a scraper still looks: stay until the process is told to end


if __name__ == "__main__":
    main()
