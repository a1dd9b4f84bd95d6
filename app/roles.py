"""One function a role: it builds the role from the settings and opens it on the process's stack."""

from pathlib import Path
from typing import Any

from alerting.body import Presentation
from alerting.errors import BadSetting, StoreUnavailable
from alerting.incident import Tier
from alerting.pager import Pager, PagerOptions
from alerting.reader import IncidentReader
from alerting.receivers import RECEIVERS, Receiver
from alerting.route import Routing
from alerting.service import AlertOptions, AlertService
from alerting.store import Store, StoreReader
from app.descriptors import raise_limit
from app.settings import Settings, SettingsError, secret_of
from app.telemetry import alert_metrics, collector_metrics, detector_metrics, listener_metrics
from app.way_up import way_up
from app.wiring import Wiring
from collectors.agent import NodeAgent
from collectors.credentials import JobCredentials
from collectors.registry import SourceOptions, build_source
from collectors.source import Source
from collectors.training import TrainingListener
from dashboards.app import make_app
from dashboards.security import names_of
from dashboards.server import serve
from detectors.agents import DetectorService
from detectors.position import GROUP
from detectors.registry import default_detectors
from telemetry_bus import Refusal, Topic
from telemetry_bus.bus import Bus
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.publisher import tick_for_ever
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

LOOPBACK = "127.0.0.1"
IDLE_SECONDS_MAX = 20.0
"""Ticks come, and positions are committed, once a second; a heartbeat every 30 s sees twenty of them missing."""


async def collecting_role(wiring: Wiring) -> None:
    """A node's GPUs, and the listener for its training jobs."""
    settings = wiring.settings
    sources = sources_of(settings, wiring.clock)
    simulated = bool(sources) and all(source.name == "simulated" for source in sources)
    publish = (await way_up(wiring, simulated=simulated)).publish
    listener = await wiring.stack.enter_async_context(_listener(settings, wiring.clock, publish))
    wiring.said["socket"] = str(settings.socket_path)
    if listener.tcp_address is not None:
        wiring.said["train_port"] = f"http://{listener.tcp_address[0]}:{listener.tcp_address[1]}"
    wiring.gauges.add(lambda: listener_metrics(listener.counters))
    if not sources:
        note = "No GPU is read here: no NVIDIA driver was found. Use --simulate N for simulated ones."
        wiring.said.setdefault("notes", []).append(note)
        return
    agent = NodeAgent(
        sources, publish, wiring.clock, node=settings.node, region=settings.region, hz=settings.collect.hz
    )
    await wiring.stack.enter_async_context(agent)
    wiring.gauges.add(lambda: collector_metrics(agent))


def _listener(settings: Settings, clock: Clock, publish: Any) -> TrainingListener:
    port = settings.collect.port
    _make_folder_of(settings.socket_path, "collect.socket")
    return TrainingListener(
        publish,
        clock,
        node=settings.node,
        region=settings.region,
        unix_path=settings.socket_path,
        tcp=None if port is None else (LOOPBACK, port),
        credentials=JobCredentials(Secret(secret_of(settings.state))),
    )


def _make_folder_of(path: Path, key: str, mode: int = 0o755) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise SettingsError(
            f"{key}: the folder of {path} cannot be made: {error.strerror}. Expected a folder that this user may "
            f"write: set {key} or state elsewhere."
        ) from error


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


async def detecting_role(wiring: Wiring) -> None:
    """The detectors, and the ticks of the bus's clock."""
    letters = DeadLetters(wiring.bus, wiring.clock, wiring.source("detect.dead"))
    detectors = [config.build() for config in default_detectors()]
    part = wiring.settings.detect.part
    service = DetectorService(wiring.bus, detectors, wiring.clock, letters, wiring.source("detect"), part=part)
    wiring.gauges.add(lambda: detector_metrics(service.stats, letters))
    wiring.tasks.create_task(service.run(), name="detect")
    wiring.awaited.append(service.caught_up)
    wiring.tasks.create_task(tick_for_ever(wiring.bus, wiring.clock, wiring.source("ticks")), name="ticks")


class DetectorsAtWork:
    """Whether the detectors get on: their position among the ticks moves, and so the bus can be written and is read."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self._position, self._moved_at = -1, clock.monotonic()

    async def blindness(self) -> str | None:
        """Why nothing would be found just now; ``None`` while the position moves."""
        ticks = (await self._bus.committed(GROUP)).get(Topic.TICKS, {})
        position = max(ticks.values(), default=-1)
        now = self._clock.monotonic()
        if position != self._position:
            self._position, self._moved_at = position, now
        if now - self._moved_at > IDLE_SECONDS_MAX:
            return f"the detectors have dealt with nothing for {now - self._moved_at:.0f} s: no tick is written or read"
        return None


async def alerting_role(wiring: Wiring) -> None:
    """Findings to incidents to deliveries."""
    settings = wiring.settings
    _make_folder_of(settings.store_path, "alert.store", mode=0o700)
    letters = DeadLetters(wiring.bus, wiring.clock, wiring.source("alert.dead"))

    async def dead_letter(refusal: Refusal) -> None:
        await letters.put(refusal)

    heartbeat = settings.alert.heartbeat_url
    options = AlertOptions(
        presentation=presentation(settings),
        heartbeat_url=None if heartbeat is None else Secret(heartbeat.get_secret_value()),
        dead_letter=dead_letter,
        on_change=wiring.incidents_changed.set,
        others_blind=DetectorsAtWork(wiring.bus, wiring.clock).blindness,
    )
    store = await wiring.stack.enter_async_context(Store(settings.store_path))
    try:
        await store.ready()
    except StoreUnavailable as error:
        notes = wiring.said.setdefault("notes", [])
        notes.append(f"Incidents are not recorded, only critical findings are paged: {error}")
    service = AlertService(wiring.bus, store, receivers_of(settings, wiring.clock), Routing(), wiring.clock, options)
    await wiring.stack.enter_async_context(service)
    wiring.gauges.add(lambda: alert_metrics(service.stats))


def presentation(settings: Settings) -> Presentation:
    """How incidents are shown: what a GPU costs, and where links lead."""
    return Presentation(settings.usd_per_gpu_hour, settings.serve.public_url, settings.alert.runbooks)


def receivers_of(settings: Settings, clock: Clock) -> list[Receiver]:
    """The configured receivers, not yet open. Raises :class:`~app.settings.SettingsError`."""
    try:
        return [
            RECEIVERS[item.type](
                name,
                Secret(item.url.get_secret_value()),
                Secret(item.secret.get_secret_value()),
                frozenset(Tier(tier) for tier in item.tiers),
            ).build(clock)
            for name, item in settings.receivers.items()
        ]
    except BadSetting as error:
        raise SettingsError(str(error)) from error


def pager_of(settings: Settings, clock: Clock) -> Pager | None:
    """What pages for a gateway while the bus is away, not yet open; ``None`` where no receiver takes pages."""
    receivers = receivers_of(settings, clock)
    if not any(Tier.PAGE in receiver.tiers for receiver in receivers):
        return None
    return Pager(receivers, Routing(), clock, PagerOptions(presentation(settings)))


async def serving_role(wiring: Wiring) -> None:
    """The page, the API and the metrics."""
    raise_limit()
    settings = wiring.settings
    reader = await wiring.stack.enter_async_context(StoreReader(settings.store_path))
    incidents = IncidentReader(reader, wiring.clock, presentation(settings))
    token = settings.serve.token
    app = make_app(
        wiring.bus,
        incidents,
        wiring.clock,
        token=None if token is None else Secret(token.get_secret_value()),
        hosts=names_of(settings.serve.host) if token is None else None,
        push=wiring.incidents_changed,
        collectors=[wiring.gauges],
        ring_bytes=settings.serve.ring_mib * 1024 * 1024,
    )
    port = await wiring.stack.enter_async_context(serve(app, settings.serve.host, settings.serve.port))
    host = f"[{settings.serve.host}]" if ":" in settings.serve.host else settings.serve.host
    wiring.said["url"] = f"http://{host}:{port}"
