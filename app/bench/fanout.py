"""``bench fanout``: many live readers of one `nantucket serve`, some of which do not read, and what they cost the bus.

The server is a process of its own over an embedded bus; a publisher and the readers are processes too, over real
connections. Measured twice: pages (server-sent events with a heatmap) and programs (the Arrow stream of a topic), each
with all readers and with one.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.bench.fanout_peer import broker_bus, consumers_read, idle_bytes, readers_read
from app.bench.machine import cpu_seconds, machine, peak_rss_mib
from app.output import console, print_json
from app.processes import Talking, talking

READY_SECONDS = 60.0
FRAMES_HZ = 5.0
RANKS = 8
"""A frame is the step of so many ranks: some 5 KB as an Arrow message."""
GPUS = 1_024
LATE_SECONDS = 2.0
"""Time for the slow ones to be told, once they read again."""
PATHS = {
    "pages": "/api/v1/stream?heat=power_watts:worst",
    "programs": "/api/v1/frames/telemetry.train?follow=true",
}
COUNTERS = ("bus_reads", "fanout_skipped", "sse_skipped")


@dataclass(frozen=True, slots=True)
class FanOutOptions:
    """How many read, how many of them do not really, and for how long each part is measured."""

    readers: int = 1_000
    slow: int = 100
    seconds: float = 20.0
    peer: str | None = None


async def bench_fanout_command(options: FanOutOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a reader that reads lost its connection."""
    result = await bench_fanout(options)
    if as_json:
        print_json(result)
    else:
        console(as_json=False).print(_words(result), markup=False)
    return 1 if any(result[part]["broken"] for part in PATHS) else 0


async def bench_fanout(options: FanOutOptions) -> dict[str, Any]:
    """The object of ``bench fanout --json``."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            server, port = await stack.enter_async_context(_serving(folder, (folder / "bus").as_uri()))
            parts = {}
            for part, path in PATHS.items():
                alone = await _measured(server, folder, port, path, 1, 0, options.seconds)
                many = await _measured(server, folder, port, path, options.readers, options.slow, options.seconds)
                parts[part] = {**many, "alone": alone}
            used = {
                "cpu_seconds": round(cpu_seconds(server.process.pid), 2),
                "peak_rss_mib": peak_rss_mib(server.process.pid),
            }
        peer = await _against_kafka(options) if options.peer == "kafka" else None
    keys = ("frames_per_second", "bus_reads", "staleness_p99_ms", "skipped", "cpu_seconds_per_reader")
    result = {"bench": "fanout", "seconds": round(time.monotonic() - started, 1), **used, "machine": machine()}
    result |= {"readers": options.readers, "slow": options.slow, "seconds_each": options.seconds}
    result |= {key: parts["pages"][key] for key in keys} | parts
    return result if peer is None else result | {"peer": peer}


@contextlib.asynccontextmanager
async def _serving(folder: Path, bus: str) -> AsyncIterator[tuple[Talking, int]]:
    command = ["app.cli", "serve", "--bus", bus, "--state", str(folder), "--port", "0", "--json"]
    async with talking("nantucket serve", command) as server:
        ready = await server.line(lambda line: line.get("ready"), READY_SECONDS)
        yield server, int(ready["url"].rpartition(":")[2])


async def _against_kafka(options: FanOutOptions) -> dict[str, Any]:
    """The broker's bytes while nobody reads, while consumers read it themselves, and while our readers do."""
    seconds = options.seconds
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        folder = Path(name)
        async with broker_bus(folder) as (broker, url), _publishing(url):
            idle = await idle_bytes(broker, seconds)
            theirs = await consumers_read(broker, options.readers, seconds)
            async with _serving(folder, url) as (_, port):
                command = _readers(port, PATHS["programs"], options.readers, options.slow, seconds)
                async with talking("the readers", command, keep_stdin=True) as reading:
                    ours = await readers_read(broker, reading, seconds)
                    seen = await reading.line(lambda line: line.get("measured"), READY_SECONDS)
                    await reading.say("\n")
                    await reading.process.wait()
    each = (theirs["broker_bytes"] - idle) / theirs["consumers"]
    return {
        "name": "kafka",
        "consumers": theirs["consumers"],
        "messages": theirs["messages"],
        "broker_bytes": theirs["broker_bytes"] - idle,
        "broker_bytes_for_all_readers": round(each * options.readers),
        "ours": {"readers": options.readers, "stamps": seen["stamps"], "broker_bytes": ours - idle},
    }


def _readers(port: int, path: str, readers: int, slow: int, seconds: float) -> list[str]:
    command = ["app.bench.fanout_readers", "--port", str(port), "--path", path, "--readers", str(readers)]
    return [*command, "--slow", str(slow), "--seconds", str(seconds)]


async def _measured(
    server: Talking, folder: Path, port: int, path: str, readers: int, slow: int, seconds: float
) -> dict[str, Any]:
    """What ``readers`` of ``path`` see, ``slow`` of whom do not read, and what that costs the server."""
    async with _publishing((folder / "bus").as_uri()) as source:
        command = _readers(port, path, readers, slow, seconds)
        async with talking("the readers", command, keep_stdin=True) as reading:
            await reading.line(lambda line: line.get("measuring"), READY_SECONDS)
            before, cpu = await _counters(port), cpu_seconds(server.process.pid)
            seen = dict(await reading.line(lambda line: line.get("measured"), seconds + READY_SECONDS))
            after, used = await _counters(port), cpu_seconds(server.process.pid) - cpu
            await asyncio.sleep(LATE_SECONDS if slow else 0.0)
            skipped = await _counters(port)
            await reading.say("\n")
            await reading.process.wait()
        await source.stop()
        published = await source.line(lambda line: "frames" in line, READY_SECONDS)
    del seen["measured"]
    return {
        "readers": readers,
        "slow": slow,
        "frames_per_second": round(published["frames"] / published["seconds"], 1),
        "bus_reads": int(after["bus_reads"] - before["bus_reads"]),
        **seen,
        "skipped": int(sum(skipped[name] - before[name] for name in COUNTERS[1:])),
        "cpu_seconds": round(used, 2),
        "cpu_seconds_per_reader": round(used / readers, 5),
    }


@contextlib.asynccontextmanager
async def _publishing(bus: str) -> AsyncIterator[Talking]:
    command = ["app.bench.fanout_source", "--bus", bus, "--hz", str(FRAMES_HZ)]
    command += ["--ranks", str(RANKS), "--gpus", str(GPUS)]
    async with talking("the publisher", command) as source:
        await source.line(lambda line: line.get("publishing"), READY_SECONDS)
        yield source


async def _counters(port: int) -> dict[str, float]:
    async with httpx.AsyncClient(timeout=READY_SECONDS) as http:
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    found = {name: re.search(rf"^nantucket_{name}_total (\S+)$", text, re.MULTILINE) for name in COUNTERS}
    return {name: float(match[1]) for name, match in found.items() if match is not None}


def _words(result: Mapping[str, Any]) -> str:
    lines = []
    for part in PATHS:
        many, alone = result[part], result[part]["alone"]
        lines.append(
            f"{part}: {many['readers']} readers, {many['slow']} of them do not read: staleness p99 "
            f"{many['staleness_p99_ms']} ms, {many['bus_reads']} reads of the bus (with one reader "
            f"{alone['bus_reads']}, p99 {alone['staleness_p99_ms']} ms), {many['skipped']} skipped, "
            f"{many['cpu_seconds']} CPU-seconds in {result['seconds_each']:g} s"
        )
    if "peer" in result:
        peer = result["peer"]
        lines.append(
            f"kafka: {peer['consumers']} consumers that read the topic themselves cost the broker "
            f"{peer['broker_bytes'] / 1e6:.1f} MB, {result['readers']} of them "
            f"{peer['broker_bytes_for_all_readers'] / 1e6:.1f} MB; {peer['ours']['readers']} readers of ours "
            f"{peer['ours']['broker_bytes'] / 1e6:.1f} MB"
        )
    return "\n".join(lines)
