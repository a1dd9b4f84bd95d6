"""The peer of ``bench fanout``: consumers that each read the topic from the broker themselves, in one process."""

import argparse
import asyncio
import json
import sys

from telemetry_bus import Latest, Topic, open_bus
from telemetry_bus.runtime.clock import SystemClock


async def consume(url: str, begun: asyncio.Barrier, counts: list[int]) -> None:
    """Open a bus of its own and read what comes until cancelled: how many messages, and how many bytes."""
    async with open_bus(url, SystemClock()) as bus, bus.subscribe((Topic.TRAIN,), Latest()) as subscription:
        await begun.wait()
        async for records in subscription:
            counts[0] += len(records)
            counts[1] += sum(len(record.payload) for record in records)


async def run(url: str, consumers: int, seconds: float) -> None:
    """Read with all of them and say what came."""
    begun, counts = asyncio.Barrier(consumers + 1), [0, 0]
    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(consume(url, begun, counts)) for _ in range(consumers)]
        await begun.wait()
        print(json.dumps({"measuring": True}), flush=True)
        await asyncio.sleep(seconds)
        print(json.dumps({"measured": True}), flush=True)
        for task in reading:
            task.cancel()
    print(json.dumps({"messages": counts[0], "received_bytes": counts[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def main() -> None:
    """Read the arguments and the topic."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bus", required=True)
    parser.add_argument("--consumers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    asyncio.run(run(given.bus, given.consumers, given.seconds))


if __name__ == "__main__":
    main()
