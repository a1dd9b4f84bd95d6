"""``bench pipeline``: what the top of the tree receives, through gateway, log, detectors and live state.

The roles are the real ones, a process each; the generator is a process of its own and sends over real connections.
Nothing is told to wait for anything: the racks send when it is their time. CPU is the operating system's accounting of
our processes within the measured seconds, their start left out.
"""

import asyncio
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.bench.kafka_broker import KafkaBroker
from app.bench.machine import machine
from app.bench.pipeline_faults import Found, found_faults
from app.bench.pipeline_racks import Order
from app.bench.watched import Figures, Role, grown, quantiles, words
from app.output import console, print_json
from app.processes import talking

READY_SECONDS = 120.0
WARM_SECONDS = 5.0
"""From the first rack's first second until the figures begin: every source is known by then."""
CALM_SECONDS = 2.0
"""At the beginning and the end of the measured seconds no job turns NaN."""
STEPS_SECONDS = 10.0
"""For so long a job steps before it turns NaN: a few of them step at any time, whatever the size of the fleet."""
SILENCE_SECONDS = 20.0
"""A node's silence is said after 15 s, at a tick; nodes fall silent early enough for that."""
PARTITIONS = 12
"""Of a Kafka topic of rows."""
RACK_OF_GPUS = 500
"""Leviathan's 300,000 GPUs are 600 racks; a smaller fleet has fewer of them."""
IDLE_SECONDS = 5.0
"""For so long the roles are watched before anything comes: what they cost at rest does not grow with the fleet."""
RACK_NODES, RACK_GPUS = 64, 8


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """``gpus`` GPUs with ``metrics`` metrics at ``hz``, for ``seconds``. ``bus`` is a URL, ``kafka`` for a broker that
    is started here, or nothing for the embedded log. ``slices`` detectors share the partitions. ``tier`` is ``top``, or
    ``rack`` for one rack's gateway below a gateway."""

    gpus: int
    metrics: int
    hz: float
    seconds: float
    bus: str | None
    tier: str
    slices: int
    seed: int


@dataclass(frozen=True, slots=True)
class System:
    """The roles that run, and where the generator connects."""

    bus: str
    roles: Mapping[str, Role]
    url: str
    token: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measured seconds gave: CPU seconds by role, and the figures of every role at their begin and end."""

    seconds: float
    cpu: Mapping[str, float]
    before: Mapping[str, Figures]
    after: Mapping[str, Figures]
    injected: Sequence[Mapping[str, Any]]
    sent: Mapping[str, Any]
    idle: float
    """CPU seconds a second of all roles at rest, before anything came."""


async def bench_pipeline_command(options: PipelineOptions, *, as_json: bool) -> int:
    """Measure and print; 1 if a fault was not found or a frame is missing."""
    out = console(as_json=as_json)
    out.print(
        f"{options.gpus:,} GPUs, {options.metrics} metrics, {options.hz:g} Hz, {options.seconds:.0f} s, tier "
        f"{options.tier}, bus {options.bus or 'embedded'} ..."
    )
    result = await bench_pipeline(options)
    if as_json:
        print_json(result)
    else:
        out.print(words(result), markup=False)
    return 1 if result["found"] < result["injected"] or result["frames_missing"] else 0


async def bench_pipeline(options: PipelineOptions) -> dict[str, Any]:
    """The object of ``bench pipeline --json``."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        async with contextlib.AsyncExitStack() as stack:
            system = await _system(Path(name), options, stack)
            measured = await _measure(system, options, stack)
            found = await found_faults(system.bus, measured.injected)
            missing = await _missing(system.roles["serve"])
            result = _result(options, system, measured, found, missing)
    return {"bench": "pipeline", "seconds": round(time.monotonic() - started, 1), **result}


async def _system(folder: Path, options: PipelineOptions, stack: contextlib.AsyncExitStack) -> System:
    """Bus, gateway (for a rack: two of them), detectors and live state."""
    bus, token = await _bus(folder, options.bus, stack), secrets.token_urlsafe(24)
    roles: dict[str, Role] = {}

    async def start(name: str, command: Sequence[str], bus_url: str) -> dict[str, Any]:
        config = await asyncio.to_thread(_configuration, folder, name, bus_url, token)
        whole = ["app.cli", *command, "--config", str(config), "--json"]
        process = await stack.enter_async_context(talking(f"nantucket {name}", whole))
        ready = await process.line(lambda line: line.get("ready"), READY_SECONDS)
        roles[name] = Role(name, process, ready.get("metrics") or f"{ready['url']}/metrics")
        return ready

    await start("serve", ["serve"], bus)
    for at in range(options.slices):
        await start(f"detect {at}", ["detect", "--slice", f"{at}/{options.slices}"], bus)
    url = (await start("gateway", ["gateway"], bus))["gateway"]
    if options.tier == "rack":
        url = (await start("rack", ["gateway"], url))["gateway"]
    return System(bus, roles, url, token)


async def _bus(folder: Path, chosen: str | None, stack: contextlib.AsyncExitStack) -> str:
    if chosen is None:
        return (folder / "bus").as_uri()
    if chosen != "kafka":
        return chosen
    broker = await stack.enter_async_context(KafkaBroker(folder / "kafka"))
    url = f"kafka://{broker.bootstrap}"
    command = ["app.cli", "bus", "init", "--bus", url, "--partitions", str(PARTITIONS), "--state", str(folder)]
    async with talking("nantucket bus init", [*command, "--json"]) as init:
        await init.process.wait()
    return url


def _configuration(folder: Path, name: str, bus: str, token: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}.toml"
    path.write_text(
        f"state = {json.dumps(str(folder))}\nnode = {json.dumps(name.replace(' ', '-'))}\nbus = {json.dumps(bus)}\n"
        f"[gateway]\nport = 0\nhttp_port = 0\ntoken = {json.dumps(token)}\n[link]\ntoken = {json.dumps(token)}\n"
        f"[metrics]\nport = 0\n[serve]\nport = 0\nring_mib = 256\n"
    )
    return path


def _order(system: System, options: PipelineOptions) -> Order:
    racks, gpus = (RACK_NODES, RACK_GPUS) if options.tier == "rack" else (options.gpus // RACK_OF_GPUS, RACK_OF_GPUS)
    return Order(
        url=system.url,
        token=system.token,
        first=0,
        racks=racks,
        gpus=gpus,
        metrics=options.metrics,
        hz=options.hz,
        seconds=WARM_SECONDS + options.seconds + SILENCE_SECONDS,
        jobs=20,
        silent=5,
        calm=WARM_SECONDS + CALM_SECONDS,
        until=WARM_SECONDS + options.seconds - CALM_SECONDS,
        seed=options.seed,
        steps_before=STEPS_SECONDS,
    )


async def _measure(system: System, options: PipelineOptions, stack: contextlib.AsyncExitStack) -> Measured:
    order = _order(system, options)
    first_line = json.dumps(asdict(order)) + "\n"
    command = ["app.bench.pipeline_racks"]
    racks = await stack.enter_async_context(talking("the racks", command, stdin=first_line, keep_stdin=True))
    await racks.line(lambda line: "made" in line, READY_SECONDS)
    resting = sum(_cpu(system).values())
    await asyncio.sleep(IDLE_SECONDS)
    idle = (sum(_cpu(system).values()) - resting) / IDLE_SECONDS
    await racks.say("go\n")
    await asyncio.sleep(WARM_SECONDS)
    before, cpu_before, begun = await _figures(system), _cpu(system), time.monotonic()
    await asyncio.sleep(options.seconds)
    cpu_after, ended = _cpu(system), time.monotonic()
    after = await _figures(system)
    sent = await racks.line(lambda line: line.get("done"), order.seconds + READY_SECONDS)
    injected = [line for line in racks.lines if "job" in line or "silent" in line]
    cpu = {name: cpu_after[name] - cpu_before[name] for name in cpu_after}
    return Measured(ended - begun, cpu, before, after, injected, sent, idle)


async def _figures(system: System) -> dict[str, Figures]:
    return {name: await role.figures() for name, role in system.roles.items()}


def _cpu(system: System) -> dict[str, float]:
    return {name: role.cpu() for name, role in system.roles.items()}


async def _missing(serve: Role) -> int:
    figures = await serve.figures()
    return int(figures["nantucket_frames_outstanding", ""] + figures["nantucket_frames_lost_total", ""])


def _result(options: PipelineOptions, system: System, measured: Measured, found: Found, missing: int) -> dict[str, Any]:
    order = _order(system, options)
    gpus = order.racks * order.gpus
    samples = round(_rows(measured) * options.metrics)
    cpu = sum(measured.cpu.values())
    lags = [
        quantiles(measured.before[name], measured.after[name], histogram, (0.5, 0.99))
        for name, histogram in _HISTOGRAMS.items()
        if name in measured.after
    ]
    memory = {name: role.peak_mib() for name, role in system.roles.items()}
    return {
        "cpu_seconds": round(cpu, 2),
        "peak_rss_mib": round(sum(memory.values()), 1),
        "machine": machine(),
        "tier": options.tier,
        "bus": (options.bus or "embedded").partition(":")[0],
        "gpus": gpus,
        "sources": order.racks,
        "metrics": options.metrics,
        "hz": options.hz,
        "measured_seconds": round(measured.seconds, 2),
        "samples": samples,
        "samples_per_cpu_second": round(samples / cpu) if cpu else None,
        "cpu_seconds_a_second_at_rest": round(measured.idle, 3),
        "net_cpu_nanoseconds_per_sample": round((cpu - measured.idle * measured.seconds) / samples * 1e9, 1),
        "lag_p50_s": _worst([lag[0] for lag in lags]),
        "lag_p99_s": _worst([lag[1] for lag in lags]),
        "injected": len(measured.injected),
        "found": found.count,
        "not_found": found.missing,
        "found_after_p50_s": found.after_p50_s,
        "found_after_max_s": found.after_max_s,
        "frames_missing": missing,
        "cpu_seconds_by_role": {name: round(seconds, 2) for name, seconds in measured.cpu.items()},
        "peak_rss_mib_by_role": memory,
        "bytes_per_gpu": round(sum(memory.values()) * 1024 * 1024 / gpus),
        "cpu_milliseconds_per_node_second": _per_node(options, measured),
        "offered_samples": round(gpus * options.metrics * options.hz * measured.seconds),
        "generator": dict(measured.sent),
    }


_HISTOGRAMS = {"serve": "nantucket_live_age_seconds", "detect 0": "nantucket_detector_age_seconds"}


def _rows(measured: Measured) -> float:
    """Rows that went all the way in the measured seconds: through detectors and live state, whichever saw fewer."""
    names = {"serve": ("nantucket_live_age_seconds_count", ["serve"])}
    detectors = [name for name in measured.after if name.startswith("detect")]
    names["detect"] = ("nantucket_detector_age_seconds_count", detectors)
    return min(
        sum(grown(measured.before[role], measured.after[role], sample) for role in roles)
        for sample, roles in names.values()
    )


def _per_node(options: PipelineOptions, measured: Measured) -> float | None:
    """Of a rack's gateway: CPU milliseconds a second for each of its nodes."""
    if options.tier != "rack":
        return None
    return round(1000.0 * measured.cpu["rack"] / measured.seconds / RACK_NODES, 3)


def _worst(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 3) if known else None
