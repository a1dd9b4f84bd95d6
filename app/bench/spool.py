"""``bench spool``: a node, a job and a gateway, and a real bus that is taken away and put back.

One node in real processes: ``nantucket collect`` (8 simulated GPUs at 1 Hz, and a training job through the SDK), a
gateway that holds the receiver, Kafka, ``detect`` and ``alert``. The broker is stopped; the job goes NaN; the collector
is killed and started again; the broker is started again. What has arrived is counted at the far end, by its ledger.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.bench.kafka_broker import KafkaBroker
from app.bench.machine import cpu_seconds, machine, peak_rss_mib
from app.bench.spool_arrivals import Arrivals, read_until
from app.output import console, print_json
from app.processes import ProcessFailed, Talking, talking
from telemetry_bus.bus import open_bus
from telemetry_bus.kafka import KafkaOptions, create_topics
from telemetry_bus.runtime.clock import SystemClock

READY_SECONDS = 90.0
SETTLE_SECONDS = 10.0
"""Before the bus goes: everything streams, and the detectors are warm."""
PAGE_SECONDS = 30.0
"""A page that has not come by then is lost."""
DRAIN_SECONDS = 300.0
LATER_SECONDS = 20.0
"""What would be paged again comes within a second of the bus's return; this waits longer."""
PARTITIONS = 8
STEP_SECONDS = 0.5
JOB = "bench-spool"


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """Without a bus for ``outage`` seconds; with ``nodes``, that many spools of four compressed hours instead."""

    outage: float = 600.0
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class _Scene:
    """Where everything is."""

    folder: Path
    broker: KafkaBroker
    receiver: Talking
    gateway: str

    @property
    def bus(self) -> str:
        return f"kafka://{self.broker.bootstrap}"

    @property
    def socket(self) -> Path:
        return self.folder / "node" / "collector.sock"


async def bench_spool_command(options: SpoolOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a frame is missing or visible twice, or a page was late or repeated."""
    out = console(as_json=as_json)
    if options.nodes:
        from app.bench.spool_fleet import bench_fleet  # noqa: PLC0415  each of the two loads what it needs

        result = await bench_fleet(options.nodes, lambda text: out.print(text, markup=False))
    else:
        out.print(f"A node, a gateway and Kafka; {options.outage:.0f} s without the broker ...", markup=False)
        result = await bench_spool(options.outage)
    print_json(result) if as_json else out.print(_words(result), markup=False)
    paged = options.nodes or (result["pages_after"] == 0 and result["nan_page_ms"] is not None)
    return 0 if paged and not result["frames_missing"] and not result["frames_duplicate"] else 1


def _words(result: dict[str, Any]) -> str:
    said = (
        f"{result['frames']} frames, {result['frames_missing']} missing, {result['frames_duplicate']} visible twice; "
        f"backlog sent at {result['catch_up_factor']} times real time while live frames took {result['live_p99_s']} s "
        "(p99)"
    )
    if "nan_page_ms" in result:
        said += f"; NaN without a bus paged in {result['nan_page_ms']} ms, and {result['pages_after']} times after it"
    return said


async def bench_spool(outage: float, later_seconds: float = LATER_SECONDS) -> dict[str, Any]:
    """The object of ``bench spool --json`` for one node; ``later_seconds`` are waited for what may come after all."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        async with contextlib.AsyncExitStack() as stack:
            scene = await _system(Path(name), stack)
            collector = await stack.enter_async_context(_collector(scene))
            job = await stack.enter_async_context(_job(scene))
            await asyncio.sleep(SETTLE_SECONDS)
            result = await _outage(scene, stack, collector, job, (outage, later_seconds))
    return {
        "bench": "spool", "seconds": round(time.monotonic() - started, 1), "cpu_seconds": result.pop("cpu_seconds"),
        "peak_rss_mib": result.pop("peak_rss_mib"), "machine": machine(), "outage_s": outage, **result,
    }  # fmt: skip


async def _outage(
    scene: _Scene, stack: contextlib.AsyncExitStack, collector: Talking, job: Talking, times: tuple[float, float]
) -> dict[str, Any]:
    """Take the bus away, let the job go NaN, kill the collector, put the bus back, and look at what arrives."""
    seconds, later_seconds = times
    gone = time.monotonic()
    await scene.broker.stop()
    await asyncio.sleep(seconds / 4)
    await job.say("nan\n")
    nan = (await job.line(lambda line: "nan_step" in line, READY_SECONDS))["monotonic_ns"]
    page = await _page(scene.receiver)
    await asyncio.sleep(max(0.0, gone + seconds / 2 - time.monotonic()))
    used = cpu_seconds(collector.process.pid)
    collector.process.kill()
    await collector.process.wait()
    collector = await stack.enter_async_context(_collector(scene))
    await asyncio.sleep(max(0.0, gone + seconds - time.monotonic()))
    await scene.broker.start()
    back, came_back = SystemClock().now(), time.monotonic_ns()
    arrivals = Arrivals(back)
    async with open_bus(scene.bus, SystemClock()) as bus:
        await read_until(bus, arrivals, DRAIN_SECONDS, later_seconds)
    return {
        **arrivals.result(),
        "nan_page_ms": None if page is None else round((page - nan) / 1e6, 1),
        "pages_after": sum(arrived > came_back for arrived in _firing(scene.receiver)),
        "cpu_seconds": round(used + cpu_seconds(collector.process.pid), 2),
        "peak_rss_mib": peak_rss_mib(collector.process.pid),
    }


async def _page(receiver: Talking) -> int | None:
    with contextlib.suppress(ProcessFailed):
        await receiver.line(lambda _: bool(_firing(receiver)), PAGE_SECONDS)
    return min(_firing(receiver), default=None)


def _firing(receiver: Talking) -> list[int]:
    """When pages of the job arrived (monotonic nanoseconds), repetitions included."""
    bodies = [line for line in receiver.lines if line.get("verified")]
    return [
        line["monotonic_ns"]
        for line in bodies
        if line["body"]["status"] == "firing" and line["body"]["incident"]["job"] == JOB
    ]


async def _system(folder: Path, stack: contextlib.AsyncExitStack) -> _Scene:
    """The broker with its topics, the receiver, the detectors, alerting, and the gateway."""
    broker = await stack.enter_async_context(KafkaBroker(folder / "kafka"))
    bus = f"kafka://{broker.bootstrap}"
    await create_topics(bus, KafkaOptions(), partitions=PARTITIONS, replication=1)
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    receiver = await stack.enter_async_context(talking("the receiver", ["app.demo.receiver"], stdin=secret + "\n"))
    port = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
    pages = f'\n[receivers.oncall]\nurl = "http://127.0.0.1:{port}/"\nsecret = {json.dumps(secret)}\n'
    for role in ("detect", "alert"):
        await _role(stack, folder, role, bus, pages if role == "alert" else "")
    gateway = "\n[gateway]\nport = 0\nhttp_port = 0\n" + pages
    url = (await _role(stack, folder, "gateway", bus, gateway))["gateway"]
    return _Scene(folder, broker, receiver, url)


async def _role(stack: contextlib.AsyncExitStack, folder: Path, role: str, bus: str, more: str) -> dict[str, Any]:
    """Start one role in a state folder of its own, and return what it says when it is ready."""
    config = folder / f"{role}.toml"
    text = f"state = {json.dumps(str(folder / role))}\nbus = {json.dumps(bus)}\nnode = {json.dumps(role)}\n{more}"
    await asyncio.to_thread(config.write_text, text)
    process = await stack.enter_async_context(
        talking(f"nantucket {role}", ["app.cli", role, "--config", str(config), "--json"])
    )
    return await process.line(lambda line: line.get("ready"), READY_SECONDS)


@contextlib.asynccontextmanager
async def _collector(scene: _Scene) -> AsyncIterator[Talking]:
    """``nantucket collect``, ready. It is the node's own: a second one finds the spool of the first."""
    command = ["app.cli", "collect", "--state", str(scene.folder / "node"), "--bus", scene.gateway]
    command += ["--source", "simulated", "--simulate", "8", "--socket", str(scene.socket), "--json"]
    async with talking("nantucket collect", command, env={"NANTUCKET_NODE": "node-1"}) as collector:
        await collector.line(lambda line: line.get("ready"), READY_SECONDS)
        yield collector


def _job(scene: _Scene) -> contextlib.AbstractAsyncContextManager[Talking]:
    command = ["app.bench.spool_job", "--job", JOB, "--step-seconds", str(STEP_SECONDS)]
    return talking("the job", command, env={"NANTUCKET_URL": f"unix://{scene.socket}"}, keep_stdin=True)
