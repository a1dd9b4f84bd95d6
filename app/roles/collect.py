"""The collector's role: what a node reads, and the listener for its training jobs."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from app.roles.folders import make_folder_of
from app.settings import Settings, secret_of
from app.telemetry import collector_metrics, listener_metrics, verdict_desk_metrics
from app.verdicts import verdict_feed
from app.way_up import way_up
from app.wiring import Wiring
from collectors.agent import NodeAgent
from collectors.credentials import JobCredentials
from collectors.labels import labels_of
from collectors.registry import BESIDE_GPUS, SourceOptions, build_source
from collectors.source import Source
from collectors.training import TrainingListener
from collectors.verdict_desk import VerdictDesk
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

LOOPBACK = "127.0.0.1"


async def start(wiring: Wiring) -> None:
    """What a node reads, and the listener for its training jobs."""
    settings = wiring.settings
    # Arrow's own pool keeps 6 MiB ready for frames that have a few kilobytes here.
    pa.set_memory_pool(pa.system_memory_pool())
    options = source_options(settings)
    chosen = chosen_sources(settings, options, wiring.clock)
    simulated = [source.name for source in (*chosen.named, *chosen.found)] == ["simulated"]
    publish = (await way_up(wiring, simulated=simulated)).publish
    desk = VerdictDesk(verdict_feed(wiring))
    listener = await wiring.stack.enter_async_context(_listener(wiring, publish, options, desk))
    wiring.said["socket"] = str(settings.socket_path)
    if listener.tcp_address is not None:
        wiring.said["train_port"] = f"http://{listener.tcp_address[0]}:{listener.tcp_address[1]}"
    wiring.gauges.add(lambda: listener_metrics(listener.counters))
    wiring.gauges.add(lambda: verdict_desk_metrics(desk))
    if not (chosen.named or chosen.found):
        _note(wiring, "No GPU is read here: no NVIDIA driver was found. Use --simulate N for simulated ones.")
        return
    agent = NodeAgent(
        chosen.named,
        publish,
        wiring.clock,
        node=settings.node,
        optional=chosen.found,
        region=settings.region,
        hz=settings.collect.hz,
        labels=await asyncio.to_thread(
            labels_of, settings.collect.labels, settings.collect.labels_file, settings.collect.sysfs
        ),
    )
    await wiring.stack.enter_async_context(agent)
    wiring.gauges.add(lambda: collector_metrics(agent))
    for name, why in agent.unavailable.items():
        _note(wiring, f"{name} is not read, and is tried again: {why}")


def _note(wiring: Wiring, text: str) -> None:
    wiring.said.setdefault("notes", []).append(text)


def _listener(wiring: Wiring, publish: Any, options: SourceOptions, desk: VerdictDesk) -> TrainingListener:
    settings = wiring.settings
    port = settings.collect.port
    make_folder_of(settings.socket_path, "collect.socket")
    return TrainingListener(
        publish,
        wiring.clock,
        node=settings.node,
        region=settings.region,
        unix_path=settings.socket_path,
        tcp=None if port is None else (LOOPBACK, port),
        credentials=JobCredentials(Secret(secret_of(settings.state))),
        require_token=settings.collect.token_required,
        unix_users=_users(settings),
        verdicts=desk,
        profiling=options.profiling,
        users=options.users,
    )


def _users(settings: Settings) -> frozenset[int] | None:
    return frozenset(int(user) for user in settings.collect.users) or None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The sources of a node, not yet open: those that were named must be there, those that ``auto`` found may be."""

    named: tuple[Source, ...]
    found: tuple[Source, ...]


def chosen_sources(settings: Settings, options: SourceOptions, clock: Clock) -> Chosen:
    """What this node reads, each source once; GPUs come first, so that the others know them."""
    named = tuple(name for name in settings.collect.source if name != "auto")
    found = tuple(name for name in _automatic(settings) if name not in named)
    made = {name: build_source(name, options, clock) for name in dict.fromkeys(named + found)}
    return Chosen(tuple(made[name] for name in dict.fromkeys(named)), tuple(made[name] for name in found))


def _automatic(settings: Settings) -> list[str]:
    if "auto" not in settings.collect.source:
        return []
    real = ["nvml", *BESIDE_GPUS] if driver_here() else []
    exporters = ["dcgm_exporter"] if settings.collect.dcgm_exporter else []
    asked = ["simulated"] if settings.collect.simulate else []
    return real + exporters + asked


def source_options(settings: Settings, *, keeps: bool = True) -> SourceOptions:
    """What the settings say to sources, with what they share. Who only looks ``keeps`` nothing of what was read."""
    chosen = settings.collect
    return SourceOptions(
        settings.node,
        simulated_gpus=chosen.simulate or 8,
        seed=chosen.seed,
        fast=chosen.fast,
        profile=chosen.profile,
        kernel_log=chosen.kernel_log,
        kernel_log_state=settings.state / "kernel-log.json" if keeps else None,
        sysfs=chosen.sysfs,
        interfaces=chosen.interfaces,
        exporters=tuple(Secret(url.get_secret_value()) for url in chosen.dcgm_exporter),
        exporter_seconds=chosen.dcgm_seconds,
        exporter_rename=chosen.dcgm_rename,
        proc=chosen.procfs,
        pod_resources=chosen.pod_resources,
    )


def driver_here() -> bool:
    """Whether this machine has an NVIDIA driver loaded."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl"))
