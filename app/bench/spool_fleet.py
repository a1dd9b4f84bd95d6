"""``bench spool --nodes N``: N nodes that were cut off for four hours return together, over real links.

See :mod:`app.bench.spool_nodes` for what "four compressed hours" are. One gateway grants the backlog a pace. Live
frames are measured meanwhile where they are sent: from the frame to its answer, which means that it is durable.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from app.bench.machine import cpu_seconds, machine, peak_rss_mib
from app.bench.spool_arrivals import Arrivals, read_all
from app.bench.spool_nodes import FRAME_SECONDS, HOURS
from app.processes import Talking, talking
from telemetry_bus.bus import open_bus
from telemetry_bus.runtime.clock import SystemClock

PROCESSES = 2
BACKLOG_BYTES_PER_SECOND = 10e6
"""Of all nodes together. Two cores play the nodes as well: merging what was spooled costs these 0.15 ms a frame."""
READY_SECONDS = 90.0
FILL_SECONDS = 600.0
DRAIN_SECONDS = 1800.0


async def bench_fleet(nodes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The object of ``bench spool --nodes N --json``."""
    started = time.monotonic()
    say(f"{nodes} nodes come back after four hours without a bus, compressed: a frame a minute instead of a second ...")
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            gateway, url = await _gateway(folder, stack)
            fleet = await _fleet(folder, url, nodes, stack)
            filled = [await process.line(lambda line: "spooled" in line, FILL_SECONDS) for process in fleet]
            say(f"{sum(line['frames'] for line in filled)} frames wait in {nodes} spools; they are let go together ...")
            back, used = SystemClock().now(), cpu_seconds(gateway.process.pid)
            for process in fleet:
                await process.say("go\n")
            done = [await process.line(lambda line: "drained" in line, DRAIN_SECONDS) for process in fleet]
            used = cpu_seconds(gateway.process.pid) - used
            peak = peak_rss_mib(gateway.process.pid)
        arrivals = Arrivals(back)
        async with open_bus((folder / "bus").as_uri(), SystemClock()) as bus:
            await read_all(bus, arrivals)
    drained = max(seconds for line in done for seconds in line["drained"])
    live = [seconds for line in done for seconds in line["live_seconds"]]
    return {
        "bench": "spool", "seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(used, 2),
        "peak_rss_mib": peak, "machine": machine(), "outage_s": HOURS * 3600, "nodes": nodes,
        "seconds_per_frame_compressed": FRAME_SECONDS,
        "granted_bytes_per_second": BACKLOG_BYTES_PER_SECOND, **_figures(arrivals, drained, live),
        "spooled_bytes": sum(line["spooled"] for line in filled),
    }  # fmt: skip


def _figures(arrivals: Arrivals, drained: float, live: list[float]) -> dict[str, Any]:
    result = arrivals.result()
    return result | {
        "catch_up_factor": round(HOURS * 3600 / drained, 1),
        # The same if what was compressed away counts for nothing: frames, as they come at 1 Hz.
        "catch_up_factor_in_frames": round(HOURS * 3600 / FRAME_SECONDS / drained, 1),
        "drained_after_s": round(drained, 2),
        "live_frames": len(live),
        "live_p99_s": round(float(np.percentile(live, 99, method="higher")), 3) if live else None,
    }


async def _gateway(folder: Path, stack: AsyncExitStack) -> tuple[Talking, str]:
    config = folder / "gateway.toml"
    text = f"state = {json.dumps(str(folder))}\nnode = 'gateway'\n[gateway]\nport = 0\nhttp_port = 0\n"
    text += f"backlog_bytes_per_second = {BACKLOG_BYTES_PER_SECOND}\n"
    await asyncio.to_thread(config.write_text, text)
    command = ["app.cli", "gateway", "--config", str(config), "--json"]
    gateway = await stack.enter_async_context(talking("nantucket gateway", command))
    ready = await gateway.line(lambda line: line.get("ready"), READY_SECONDS)
    return gateway, ready["gateway"]


async def _fleet(folder: Path, url: str, nodes: int, stack: AsyncExitStack) -> list[Talking]:
    """The nodes, in a few processes."""
    shares = [share for share in np.array_split(np.arange(nodes), PROCESSES) if len(share)]
    fleet = []
    for share in shares:
        command = ["app.bench.spool_nodes", "--folder", str(folder / "nodes"), "--gateway", url]
        command += ["--first", str(share[0]), "--nodes", str(len(share))]
        fleet.append(await stack.enter_async_context(talking("the nodes", command, keep_stdin=True)))
    return fleet
