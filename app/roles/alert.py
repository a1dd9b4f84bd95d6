"""The alerting role: findings to incidents to deliveries."""

from alerting.body import Presentation
from alerting.errors import BadSetting, StoreUnavailable
from alerting.incident import Tier
from alerting.pager import Pager, PagerOptions
from alerting.receivers import RECEIVERS, Receiver
from alerting.route import Routing
from alerting.service import AlertOptions, AlertService
from alerting.store import Store
from alerting.verdicts import VerdictIssuer
from app.roles.folders import make_folder_of
from app.settings import Settings, SettingsError, secret_of
from app.telemetry import alert_metrics, verdict_metrics
from app.wiring import Wiring
from detectors.position import GROUP
from telemetry_bus import Refusal, Topic
from telemetry_bus.bus import Bus
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

IDLE_SECONDS_MAX = 20.0
"""Ticks come, and positions are committed, once a second; a heartbeat every 30 s sees twenty of them missing."""


async def start(wiring: Wiring) -> None:
    """Findings to incidents to deliveries."""
    settings = wiring.settings
    make_folder_of(settings.store_path, "alert.store", mode=0o700)
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
    if settings.alert.verdicts:
        issuer = VerdictIssuer(
            wiring.bus, wiring.clock, Secret(secret_of(settings.state)), wiring.source("alert.verdicts")
        )
        wiring.tasks.create_task(issuer.run(), name="verdicts are issued")
        wiring.gauges.add(lambda: verdict_metrics(issuer.stats))


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
