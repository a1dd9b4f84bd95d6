"""A collector's listener on the embedded bus, as a process that a test may kill: arguments SOCKET FOLDER."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from collectors.training import TrainingListener
from telemetry_bus.bus import open_bus
from telemetry_bus.publisher import publish_frame
from telemetry_bus.runtime.clock import SystemClock


async def main(socket_path: str, folder: str) -> None:
    """Serve until killed; one line on standard output says that it has begun."""
    clock = SystemClock()
    async with (
        open_bus(f"file://{folder}", clock) as bus,
        TrainingListener(partial(publish_frame, bus), clock, node="n1", unix_path=socket_path),
    ):
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
