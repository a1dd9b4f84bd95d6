"""The collector's role: what a node reads, and the listener for its training jobs."""

from pathlib import Path
from typing import Any

from app.roles.folders import make_folder_of
from app.settings import Settings, secret_of
from app.telemetry import collector_metrics, listener_metrics, verdict_desk_metrics
from app.verdicts import verdict_feed
from app.way_up import way_up
from app.wiring import Wiring
from collectors.agent import NodeAgent
from collectors.credentials import JobCredentials
from collectors.registry import SourceOptions, build_source
from collectors.source import Source
from collectors.training import TrainingListener
from collectors.verdict_desk import VerdictDesk
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

LOOPBACK = "127.0.0.1"


async def start(wiring: Wiring) -> None:
    """A node's GPUs, and the listener for its training jobs."""
    settings = wiring.settings
    sources = sources_of(settings, wiring.clock)
    simulated = bool(sources) and all(source.name == "simulated" for source in sources)
    publish = (await way_up(wiring, simulated=simulated)).publish
    desk = VerdictDesk(verdict_feed(wiring))
    listener = await wiring.stack.enter_async_context(_listener(settings, wiring.clock, publish, desk))
    wiring.said["socket"] = str(settings.socket_path)
    if listener.tcp_address is not None:
        wiring.said["train_port"] = f"http://{listener.tcp_address[0]}:{listener.tcp_address[1]}"
    wiring.gauges.add(lambda: listener_metrics(listener.counters))
    wiring.gauges.add(lambda: verdict_desk_metrics(desk))
    if not sources:
        note = "No GPU is read here: no NVIDIA driver was found. Use --simulate N for simulated ones."
        wiring.said.setdefault("notes", []).append(note)
        return
    agent = NodeAgent(
        sources, publish, wiring.clock, node=settings.node, region=settings.region, hz=settings.collect.hz
    )
    await wiring.stack.enter_async_context(agent)
    wiring.gauges.add(lambda: collector_metrics(agent))


def _listener(settings: Settings, clock: Clock, publish: Any, desk: VerdictDesk) -> TrainingListener:
    port = settings.collect.port
    make_folder_of(settings.socket_path, "collect.socket")
    return TrainingListener(
        publish,
        clock,
        node=settings.node,
        region=settings.region,
        unix_path=settings.socket_path,
        tcp=None if port is None else (LOOPBACK, port),
        credentials=JobCredentials(Secret(secret_of(settings.state))),
        verdicts=desk,
    )


def sources_of(settings: Settings, clock: Clock) -> list[Source]:
    """The sources of GPU rows: the one that is named, else this machine's GPUs, and simulated ones if asked for."""
    chosen, simulated = settings.collect.source, settings.collect.simulate
    options = SourceOptions(settings.node, simulated_gpus=simulated or 8, seed=settings.collect.seed)
    if chosen == "auto":
        names = ["nvml"] if driver_here() else []
        names += ["simulated"] if simulated else []
    else:
        names = [chosen]
    return [build_source(name, options, clock) for name in names]


def driver_here() -> bool:
    """Whether this machine has an NVIDIA driver loaded."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl"))
