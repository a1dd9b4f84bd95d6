"""``bench page``: from ``run.log()`` of a bad step to the receiver's socket, while a simulated fleet streams."""

import asyncio
import base64
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.bench.machine import cpu_seconds, machine, peak_rss_mib
from app.bench.pages import firing_pages, judge
from app.bench.prometheus_peer import prometheus_peer
from app.output import console, print_json
from app.processes import ProcessFailed, Talking, talking

READY_SECONDS = 60.0
SETTLE_SECONDS = 5.0
"""Before the first job: the fleet streams and the detectors are warm."""
LATE_SECONDS = 20.0
"""What has not arrived by then is lost."""


@dataclass(frozen=True, slots=True)
class PageOptions:
    """``events`` bad steps, each of another job, within ``seconds``, beside ``gpus`` simulated GPUs."""

    events: int
    gpus: int
    seconds: float
    peer: str | None
    seed: int


async def bench_page_command(options: PageOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a page was lost or doubled."""
    out = console(as_json=as_json)
    out.print(f"{options.events} bad steps over {options.seconds:.0f} s, beside {options.gpus} simulated GPUs ...")
    result = await bench_page(options)
    if as_json:
        print_json(result)
    else:
        out.print(_words("nantucket", result))
        if "peer" in result:
            out.print(_words("prometheus + alertmanager", result["peer"]))
    return 1 if result["lost"] or result["duplicated"] else 0


def _words(name: str, figures: Mapping[str, Any]) -> str:
    return (
        f"{name}: median {figures['p50_ms']} ms, p99 {figures['p99_ms']} ms, worst {figures['max_ms']} ms, "
        f"lost {figures['lost']}, doubled {figures['duplicated']}"
    )


async def bench_page(options: PageOptions) -> dict[str, Any]:
    """The object of ``bench page --json``."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            receiver, up, socket = await stack.enter_async_context(_system(folder, options))
            command = ["app.bench.page_jobs", "--events", str(options.events), "--seconds", str(options.seconds)]
            command += ["--seed", str(options.seed), *(["--metrics"] if options.peer else [])]
            environment = {"NANTUCKET_URL": f"unix://{socket}"}
            jobs = await stack.enter_async_context(talking("the jobs", command, env=environment, keep_stdin=True))
            peer = None
            if options.peer:
                port = (await jobs.line(lambda line: "metrics_port" in line, READY_SECONDS))["metrics_port"]
                peer = await stack.enter_async_context(prometheus_peer(folder, port))
            await asyncio.sleep(SETTLE_SECONDS)
            await jobs.say("go\n")
            await jobs.line(lambda line: line.get("done"), options.seconds + READY_SECONDS)
            stamps = {line["job"]: line["monotonic_ns"] for line in jobs.lines if "job" in line}
            await _all_arrived(receiver, stamps)
            result = {"bench": "page", "seconds": 0.0, "cpu_seconds": round(cpu_seconds(up.process.pid), 2)}
            result |= {"peak_rss_mib": peak_rss_mib(up.process.pid), "machine": machine()}
            result |= {"events": options.events, "gpus": options.gpus, **judge(stamps, firing_pages(receiver))}
            if peer is not None:
                result["peer"] = {"name": "prometheus", **judge(stamps, await peer.pages(stamps))}
    result["seconds"] = round(time.monotonic() - started, 1)
    return result


@contextlib.asynccontextmanager
async def _system(folder: Path, options: PageOptions) -> AsyncIterator[tuple[Talking, Talking, str]]:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    async with talking("the receiver", ["app.demo.receiver"], stdin=secret + "\n") as receiver:
        port = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
        config = folder / "nantucket.toml"
        await asyncio.to_thread(
            config.write_text,
            f"state = {json.dumps(str(folder))}\n[collect]\nsimulate = {options.gpus}\n"
            f"socket = {json.dumps(str(folder / 'collector.sock'))}\n[serve]\nport = 0\n"
            f'[receivers.bench]\nurl = "http://127.0.0.1:{port}/"\nsecret = {json.dumps(secret)}\n',
        )
        async with talking("nantucket up", ["app.cli", "up", "--config", str(config), "--json"]) as up:
            ready = await up.line(lambda line: line.get("ready"), READY_SECONDS)
            yield receiver, up, ready["socket"]


async def _all_arrived(receiver: Talking, stamps: Mapping[str, int]) -> None:
    def complete(_: Any) -> bool:
        return {job for job, _ in firing_pages(receiver)} >= stamps.keys()

    with contextlib.suppress(ProcessFailed):
        await receiver.line(complete, LATE_SECONDS)
