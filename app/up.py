"""The roles, wired: ``up`` runs all of them but the gateway in one process; each is a command of its own besides.

Everything is opened on one exit stack and closed in the opposite order; every task belongs to one task group. SIGTERM
and SIGINT end the process in order; SIGKILL loses nothing that was durable.
"""

import asyncio
import contextlib
import importlib
import logging
import signal
from collections.abc import Sequence
from typing import Any, Protocol, cast

from app.output import console, print_json
from app.settings import Settings
from app.wiring import Wiring, link_options, owned_tasks
from telemetry_bus import Bus, Outlet, open_bus, open_outlet
from telemetry_bus.outlet import BusOutlet, is_gateway
from telemetry_bus.runtime.clock import Clock, SystemClock
from telemetry_bus.runtime.secret import Secret

ROLES = ("alert", "detect", "serve", "gateway", "collect")
"""In this order: whoever reads is there before whoever writes."""
READY_SECONDS_MAX = 20.0

_log = logging.getLogger(__name__)


async def up(settings: Settings, roles: frozenset[str], *, as_json: bool) -> int:
    """Run ``roles`` until SIGTERM (exit status 0) or SIGINT (130). With ``as_json`` a line says when they are ready."""
    clock = SystemClock()
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    _on_signals(stopped)
    async with contextlib.AsyncExitStack() as stack:
        bus, outlet = await outlet_of(settings, clock, stack)
        tasks = await stack.enter_async_context(owned_tasks())
        wiring = Wiring(settings, bus, outlet, clock, stack, tasks)
        for role in (role for role in ROLES if role in roles):
            await _role(role).start(wiring)
        if "serve" not in roles:
            await _tell_figures(wiring)
        await _ready(wiring, stopped)
        if not stopped.done():
            _announce(wiring, sorted(roles), as_json=as_json)
        return await stopped


async def outlet_of(settings: Settings, clock: Clock, stack: contextlib.AsyncExitStack) -> tuple[Bus | None, Outlet]:
    """The bus, open, and itself as where frames go up; or the gateway that stands in its place for who only sends."""
    url = settings.bus_url
    if is_gateway(url):
        return None, await stack.enter_async_context(open_outlet(url, clock, link_options(settings)))
    bus = await stack.enter_async_context(open_bus(url, clock, settings.kafka.options))
    return bus, BusOutlet(bus, is_open=True)


class _Role(Protocol):
    async def start(self, wiring: Wiring) -> None: ...


def _role(name: str) -> _Role:
    """The file of a role, imported when it is wanted: what a process does not run, it does not carry."""
    return cast(_Role, importlib.import_module(f"app.roles.{name}"))


async def _tell_figures(wiring: Wiring) -> None:
    """Let Prometheus ask this process, if a port was chosen; a process with the page has /metrics there."""
    settings = wiring.settings
    if settings.metrics.port is None:
        return
    from app.figures import figures  # noqa: PLC0415  # a collector that nobody asks carries no server

    token = settings.serve.token
    told = figures(
        wiring.gauges,
        settings.metrics.host,
        settings.metrics.port,
        None if token is None else Secret(token.get_secret_value()),
    )
    wiring.said["metrics"] = f"http://{settings.metrics.host}:{await wiring.stack.enter_async_context(told)}/metrics"


def _on_signals(stopped: asyncio.Future[int]) -> None:
    def stop(status: int) -> None:
        if not stopped.done():
            stopped.set_result(status)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    loop.add_signal_handler(signal.SIGINT, stop, 130)


async def _ready(wiring: Wiring, stopped: asyncio.Future[int]) -> None:
    """Wait until the roles have caught up, or are told to stop. A bus that is away does not keep the process from being
    there."""

    async def caught_up() -> None:
        for event in wiring.awaited:
            await event.wait()

    ready = wiring.tasks.create_task(caught_up(), name="ready")
    waiting: tuple[asyncio.Future[Any], ...] = (stopped, ready)
    done, _ = await asyncio.wait(waiting, timeout=READY_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
    if not done:
        _log.warning("still catching up with the bus after %.0f s", READY_SECONDS_MAX)


def _announce(wiring: Wiring, roles: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"ready": True, "roles": roles, **wiring.said})
        return
    lines = [f"Nantucket runs: {', '.join(roles)}. Bus: {wiring.outlet.url}"]
    if "gateway" in wiring.said:
        lines.append(f"Collectors send with --bus {wiring.said['gateway']}")
    if "gateway_http" in wiring.said:
        lines.append(f"Others post frames to {wiring.said['gateway_http']}/v1/frames")
    if "url" in wiring.said:
        lines.append(f"The page is at {wiring.said['url']}")
    if "metrics" in wiring.said:
        lines.append(f"Figures for Prometheus are at {wiring.said['metrics']}")
    if "socket" in wiring.said:
        lines.append(f"Training jobs of this machine deliver to NANTUCKET_URL=unix://{wiring.said['socket']}")
    if "train_port" in wiring.said:
        lines.append(
            f"... and, with a credential (nantucket job token JOB), to NANTUCKET_URL={wiring.said['train_port']}"
        )
    console(as_json=False).print("\n".join([*lines, *wiring.said.get("notes", [])]), markup=False)
