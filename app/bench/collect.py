"""``bench collect``: what a node pays for its collector, and whether a sample is ever late.

The real ``nantucket collect`` with all sources of a GPU node sends to a real gateway. Where this machine has an NVIDIA
driver it is read; else the real pynvml reads a small driver library in C that answers for as many GPUs as are wanted
(``driver`` says which). Then the gateway is stopped (SIGSTOP) for a while: the samples must keep their grid.
"""

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.bench.exporter_peer import measured_peers
from app.bench.fake_driver.library import FakeDriver, compile_fake
from app.bench.machine import machine, peak_rss_mib
from app.bench.tree import alone_mib, cpu_seconds_of, process_tree
from app.output import console, print_json
from app.processes import Talking, talking
from app.roles.collect import driver_here
from collectors.registry import BESIDE_GPUS
from telemetry_bus import Earliest, Topic, decode, open_bus
from telemetry_bus.frames import select_runs
from telemetry_bus.ledger import SourceLedger
from telemetry_bus.runtime.clock import SystemClock

READY_SECONDS = 60.0
SETTLE_SECONDS = 12.0
"""The first readings take every metric, and pages of memory are still being touched."""
STOPPED_SECONDS = 8.0
"""Longer than the three after which a gateway counts as away, so that samples go to the spool meanwhile."""
NODE = "bench-node"


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """``gpus`` of the fake driver (a real one has its own number), ``hz``, measured seconds, and whether to run peers.

    ``fast`` names the metrics that alone are read faster than once a second, joined by commas.
    """

    gpus: int = 8
    hz: float = 1.0
    seconds: float = 60.0
    fast: str = ""
    peer: bool = False


async def bench_collect_command(options: CollectOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a sample is missing."""
    out = console(as_json=as_json)
    out.print(f"nantucket collect, {options.hz:g} Hz, {options.seconds:.0f} s ...", markup=False)
    result = await bench_collect(options)
    print_json(result) if as_json else out.print(_words(result), markup=False)
    return 0 if not result["rows_missing"] else 1


async def bench_collect(options: CollectOptions) -> dict[str, Any]:
    """The object of ``bench collect --json``."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        folder = Path(name)
        environment = {} if driver_here() else await asyncio.to_thread(_fake, folder, options.gpus)
        measured = await _collector(folder, options, environment)
        peers = await measured_peers(environment, options.seconds) if options.peer else {}
    return {
        "bench": "collect",
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": measured.pop("cpu_seconds"),
        "peak_rss_mib": measured.pop("peak_rss_mib"),
        "machine": machine(),
        "driver": "fake library" if environment else "this machine's",
        "hz": options.hz,
        **measured,
        **({"peer": peers} if peers else {}),
    }


def _fake(folder: Path, gpus: int) -> Mapping[str, str]:
    return FakeDriver(compile_fake(folder), folder / "answers", gpus).environment


@contextlib.asynccontextmanager
async def _gateway(folder: Path) -> AsyncIterator[tuple[Talking, str]]:
    words = ["app.cli", "gateway", "--json", "--port", "0", "--bus", f"file://{folder}/bus", "--state", f"{folder}/gw"]
    async with talking("gateway", words) as gateway:
        ready = await gateway.line(lambda line: line.get("ready"), READY_SECONDS)
        yield gateway, ready["gateway"]


async def _collector(folder: Path, options: CollectOptions, environment: Mapping[str, str]) -> dict[str, Any]:
    """CPU and memory of a collector's process tree, and when its samples were taken."""
    fast = {"NANTUCKET_COLLECT__FAST": options.fast} if options.fast else {}
    async with _gateway(folder) as (gateway, url):
        words = ["app.cli", "collect", "--json", "--bus", url, "--state", f"{folder}/node", "--hz", f"{options.hz:g}"]
        words += ["--source", ",".join(("nvml", *BESIDE_GPUS))]
        settings = {"NANTUCKET_NODE": NODE, **environment, **fast}
        async with talking("collect", words, env=settings) as collector:
            await collector.line(lambda line: line.get("ready"), READY_SECONDS)
            await asyncio.sleep(SETTLE_SECONDS)
            cost = await _cost(collector.process.pid, options.seconds)
            gateway.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(STOPPED_SECONDS)
            gateway.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(2.0)
        await asyncio.sleep(1.0)
    return cost | await _samples(folder, options.hz)


async def _cost(pid: int, seconds: float) -> dict[str, Any]:
    before, began = cpu_seconds_of(process_tree(pid)), time.monotonic()
    await asyncio.sleep(seconds)
    tree = process_tree(pid)
    after, lasted = cpu_seconds_of(tree), time.monotonic() - began
    used = {process: after[process] - before.get(process, 0.0) for process in after}
    return {
        "cpu_seconds": round(sum(used.values()), 3),
        "cpu_percent": round(100.0 * sum(used.values()) / lasted, 3),
        "cpu_percent_driver_reader": round(100.0 * sum(s for process, s in used.items() if process != pid) / lasted, 3),
        "pss_mib": alone_mib(tree),
        "processes": len(tree),
        "peak_rss_mib": peak_rss_mib(pid),
    }


async def _samples(folder: Path, hz: float) -> dict[str, Any]:
    """The instants of the samples as they lie on the bus, the time without a gateway included."""
    times, rows, bytes_, ledger = [], 0, 0, SourceLedger()
    async with (
        open_bus(f"file://{folder}/bus", SystemClock()) as bus,
        bus.subscribe((Topic.GPU, Topic.BACKLOG), Earliest()) as subscription,
    ):
        last = {topic: await bus.ends(topic) for topic in (Topic.GPU, Topic.BACKLOG)}
        wanted = sum(sum(ends.values()) > 0 for ends in last.values())
        async for records in subscription:
            for record in records:
                frame = decode(record.payload)
                # Without what came twice: live, and once more from the spool.
                frame = select_runs(frame, ledger.take(frame.manifest, record.time).fresh)
                if frame.schema_id == "gpu/1" and frame.rows:
                    times.append(np.unique(frame.times()))
                    rows, bytes_ = rows + frame.rows, bytes_ + len(record.payload)
                wanted -= record.offset + 1 == last[record.topic].get(record.partition, 0)
            if wanted <= 0:
                break
    instants = np.unique(np.concatenate(times))
    gaps = np.diff(instants)
    gpus = round(rows / len(instants))
    skipped = int(np.maximum(np.round(gaps * hz) - 1, 0).sum())
    late = np.abs(gaps - 1.0 / hz) * 1000.0
    return {
        "gpus": gpus,
        "rows": rows,
        "rows_missing": (len(instants) + skipped) * gpus - rows,
        "late_p99_ms": round(float(np.quantile(late, 0.99)), 1),
        "late_max_ms": round(float(late.max()), 1),
        "bytes_per_second": round(bytes_ / max(float(instants[-1] - instants[0]), 1.0)),
    }


def _words(result: dict[str, Any]) -> str:
    said = (
        f"{result['gpus']} GPUs ({result['driver']}) at {result['hz']:g} Hz: {result['cpu_percent']} % of a core, "
        f"{result['pss_mib']} MiB in {result['processes']} processes; {result['rows']} rows, {result['rows_missing']} "
        f"missing, at most {result['late_max_ms']} ms off their grid, the gateway stopped for {STOPPED_SECONDS:.0f} s "
        "meanwhile."
    )
    for name, peer in result.get("peer", {}).items():
        said += f"\n{name}: " + ("not on this machine" if peer is None else f"{peer['cpu_percent']} % of a core")
    return said
