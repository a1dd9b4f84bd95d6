"""A process that appends to a spool until it is killed, and says after each append that it is durable."""

import asyncio
import sys
from pathlib import Path

from telemetry_bus import FrameMaker, Topic, encode
from telemetry_bus.runtime.clock import SystemClock
from tests.collectors.outlets import gpu_frame, spooling


async def main() -> None:
    """Append for ever."""
    clock, maker = SystemClock(), FrameMaker("node-1/gpu")
    async with spooling(Path(sys.argv[1]), clock) as spool:
        while True:
            frame = gpu_frame(maker, clock.now())
            await spool.append(Topic.GPU, encode(frame), key="node-1", rows=1, simulated=False, stamped=spool.moment())
            sys.stdout.write(f"{frame.manifest[0].seq}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
