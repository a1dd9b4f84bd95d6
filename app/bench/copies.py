"""``bench copies``: detectors come and go, slices double and the broker stops, while jobs turn NaN all along.

Ten jobs a second turn NaN, beside a streaming fleet. What is measured of each is the time from the step to its finding
on the bus: the longest of them is the longest gap in detection. At the end every job must have been paged exactly once.
"""

import asyncio
import base64
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.bench.kafka_broker import KafkaBroker
from app.bench.machine import cpu_seconds, machine, peak_rss_mib
from app.bench.pages import firing_pages, judge
from app.bench.pipeline_faults import found_faults
from app.bench.pipeline_racks import Order
from app.bench.watched import words
from app.output import console, print_json
from app.processes import ProcessFailed, Talking, talking

READY_SECONDS = 120.0
LATE_SECONDS = 60.0
PARTITIONS = 8
EVENTS_PER_SECOND = 10.0
RACKS = 60
PHASE_SECONDS = 12.0
"""Between two changes: long enough to see what a change does, and for what has started to be at work."""
SETTLE_SECONDS = 15.0
"""After the broker is back."""


@dataclass(frozen=True, slots=True)
class CopiesOptions:
    """``gpus`` GPUs stream; ``outage`` is for how many seconds the broker is stopped (0: not at all)."""

    gpus: int
    outage: float
    seed: int


@dataclass(slots=True)
class Stage:
    """The processes, by name, and when what was done to them (monotonic seconds since the racks began)."""

    folder: Path
    bus: str
    token: str
    broker: KafkaBroker
    running: dict[str, AsyncExitStack] = field(default_factory=dict)
    processes: dict[str, Talking] = field(default_factory=dict)
    begun: float = 0.0
    done: list[dict[str, Any]] = field(default_factory=list)
    away: tuple[float, float] = (0.0, 0.0)
    """Wall clock, UTC seconds, between which the broker was away or the roles were finding it again."""

    def note(self, what: str) -> None:
        """Write down what has just been done."""
        self.done.append({"at_s": round(time.monotonic() - self.begun, 1), "what": what})

    async def start(self, name: str, *command: str) -> dict[str, Any]:
        """Start a role and wait until it is ready."""
        config = await asyncio.to_thread(self._configuration, name)
        stack = AsyncExitStack()
        whole = ["app.cli", *command, "--config", str(config), "--json"]
        process = await stack.enter_async_context(talking(f"nantucket {name}", whole))
        self.running[name], self.processes[name] = stack, process
        return await process.line(lambda line: line.get("ready"), READY_SECONDS)

    async def stop(self, name: str, *, kill: bool = False) -> None:
        """Stop a role in order, or kill it."""
        process = self.processes.pop(name)
        if kill:
            process.process.kill()
        await self.running.pop(name).aclose()

    async def stop_all(self) -> None:
        """Stop what runs."""
        for name in list(self.running):
            await self.stop(name)

    def _configuration(self, name: str) -> Path:
        path = self.folder / f"{name.replace(' ', '-').replace('/', '-')}.toml"
        extra = (self.folder / "receiver.toml").read_text() if name == "alert" else ""
        path.write_text(
            f"state = {json.dumps(str(self.folder))}\nnode = {json.dumps(path.stem)}\nbus = {json.dumps(self.bus)}\n"
            f"[gateway]\nport = 0\nhttp_port = 0\ntoken = {json.dumps(self.token)}\n[metrics]\nport = 0\n{extra}"
        )
        return path


async def bench_copies_command(options: CopiesOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a page was lost or doubled."""
    out = console(as_json=as_json)
    out.print(f"{options.gpus:,} GPUs, detectors that come and go, the broker away for {options.outage:.0f} s ...")
    result = await bench_copies(options)
    if as_json:
        print_json(result)
    else:
        out.print(words(result), markup=False)
    return 1 if result["lost"] or result["duplicated"] or result["not_found"] else 0


async def bench_copies(options: CopiesOptions) -> dict[str, Any]:
    """The object of ``bench copies --json``."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        async with _stage(Path(name)) as (stage, receiver):
            url = await _first_roles(stage)
            async with _racks(url, stage, options) as racks:
                await racks.say("go\n")
                stage.begun = time.monotonic()
                await _come_and_go(stage)
                if options.outage:
                    await _broker_away(stage, options.outage)
                await racks.line(lambda line: line.get("done"), READY_SECONDS + LATE_SECONDS)
                events = [line for line in racks.lines if "job" in line]
                await _all_paged(receiver, events)
            result = await _result(stage, receiver, events)
    return {"bench": "copies", "seconds": round(time.monotonic() - started, 1), **result}


@asynccontextmanager
async def _stage(folder: Path) -> AsyncIterator[tuple[Stage, Talking]]:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    async with (
        KafkaBroker(folder / "kafka") as broker,
        talking("the receiver", ["app.demo.receiver"], stdin=secret + "\n") as receiver,
    ):
        port = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
        text = f'[receivers.bench]\nurl = "http://127.0.0.1:{port}/"\nsecret = {json.dumps(secret)}\n'
        await asyncio.to_thread((folder / "receiver.toml").write_text, text)
        stage = Stage(folder, f"kafka://{broker.bootstrap}", secrets.token_urlsafe(24), broker)
        command = ["app.cli", "bus", "init", "--bus", stage.bus, "--partitions", str(PARTITIONS), "--json"]
        async with talking("nantucket bus init", [*command, "--state", str(folder)]) as init:
            await init.process.wait()
        try:
            yield stage, receiver
        finally:
            await stage.stop_all()


async def _first_roles(stage: Stage) -> str:
    await stage.start("alert", "alert")
    for part in ("0/2", "1/2"):
        await stage.start(f"detect {part}", "detect", "--slice", part)
    return str((await stage.start("gateway", "gateway"))["gateway"])


@asynccontextmanager
async def _racks(url: str, stage: Stage, options: CopiesOptions) -> AsyncIterator[Talking]:
    seconds = 5 * PHASE_SECONDS + (options.outage + SETTLE_SECONDS if options.outage else 0.0)
    order = Order(
        url=url, token=stage.token, first=0, racks=RACKS, gpus=options.gpus // RACKS, metrics=29, hz=1.0,
        seconds=seconds, jobs=round(EVENTS_PER_SECOND * seconds), silent=0, calm=4.0, until=seconds - 1.0,
        seed=options.seed, steps_before=3.0,
    )  # fmt: skip
    command, line = ["app.bench.pipeline_racks"], json.dumps(asdict(order)) + "\n"
    async with talking("the racks", command, stdin=line, keep_stdin=True) as racks:
        await racks.line(lambda said: "made" in said, READY_SECONDS)
        yield racks


async def _come_and_go(stage: Stage) -> None:
    """A second copy of a slice; its first one killed; then twice as many slices, and the first ones stopped."""
    await _after_a_phase(stage, "a second copy of slice 0/2 starts")
    await stage.start("detect 0/2 again", "detect", "--slice", "0/2")
    await _after_a_phase(stage, "the first copy of slice 0/2 is killed")
    await stage.stop("detect 0/2", kill=True)
    await _after_a_phase(stage, "slices 0/4 to 3/4 start")
    for part in ("0/4", "1/4", "2/4", "3/4"):
        await stage.start(f"detect {part}", "detect", "--slice", part)
    await _after_a_phase(stage, "slices 0/2 and 1/2 are stopped")
    for name in ("detect 0/2 again", "detect 1/2"):
        await stage.stop(name)


async def _after_a_phase(stage: Stage, what: str) -> None:
    await asyncio.sleep(PHASE_SECONDS)
    stage.note(what)


async def _broker_away(stage: Stage, seconds: float) -> None:
    """The broker is stopped and started again; one of the detectors is killed meanwhile, and started again."""
    await asyncio.sleep(PHASE_SECONDS)
    begun = time.monotonic()
    before = time.time() - 1.0
    stage.note("the broker is stopped")
    await stage.broker.stop()
    await asyncio.sleep(max(0.0, seconds / 2 - (time.monotonic() - begun)))
    stage.note("slice 3/4 is killed and started again")
    await stage.stop("detect 3/4", kill=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stage.start("detect 3/4", "detect", "--slice", "3/4"))
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - begun)))
        stage.note("the broker is started")
        await stage.broker.start()
        stage.note("the broker answers")
    stage.away = before, time.time() + SETTLE_SECONDS
    await asyncio.sleep(SETTLE_SECONDS)


async def _all_paged(receiver: Talking, events: Sequence[Mapping[str, Any]]) -> None:
    wanted = {event["job"] for event in events}
    with contextlib.suppress(ProcessFailed):
        await receiver.line(lambda _: {job for job, _ in firing_pages(receiver)} >= wanted, LATE_SECONDS)


async def _result(stage: Stage, receiver: Talking, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = await found_faults(stage.bus, events)
    away, back = stage.away
    gaps = {event["job"]: found.after[event["job"]] for event in events if event["job"] in found.after}
    calm = [gaps[event["job"]] for event in events if event["job"] in gaps and not away <= event["time"] <= back]
    pages = judge({event["job"]: event["monotonic_ns"] for event in events}, firing_pages(receiver))
    processes = [item.process.pid for item in stage.processes.values()]
    return {
        "cpu_seconds": round(sum(map(cpu_seconds, processes)), 2),
        "peak_rss_mib": round(sum(map(peak_rss_mib, processes)), 1),
        "machine": machine(),
        "events": len(events),
        "found": len(gaps),
        "not_found": len(events) - len(gaps),
        "gap_p50_s": _rounded(np.median(calm)) if calm else None,
        "gap_p99_s": _rounded(np.percentile(calm, 99)) if calm else None,
        "longest_gap_s": _rounded(max(calm)) if calm else None,
        "longest_gap_with_the_outage_s": _rounded(max(gaps.values())) if gaps else None,
        "lost": pages["lost"],
        "duplicated": pages["duplicated"],
        "done": stage.done,
    }


def _rounded(seconds: Any) -> float:
    return round(float(seconds), 3)
