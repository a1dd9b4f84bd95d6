"""The web application of the role `serve`: the live page, the API, the stream, and the metrics."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from dashboards import problems
from dashboards.arrow_stream import ArrowMessages
from dashboards.guarded import GuardedSource
from dashboards.head import Head
from dashboards.incidents import IncidentFeed, IncidentSource
from dashboards.live import Live
from dashboards.metrics import LiveCollector
from dashboards.routes import api_router, page_router
from dashboards.security import LOOPBACK_NAMES, Gate, Secret
from dashboards.services import Services
from dashboards.stream import Broadcast
from telemetry_bus.bus import AtTime, Bus
from telemetry_bus.fanout import RING_BYTES, FanOut
from telemetry_bus.federation import bus_states
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

WARM_SECONDS = 300.0
"""How far back a new process reads, so that its curves and heatmap are not empty: five minutes of 1,000 GPUs are some
60 MiB, read in a few seconds."""


def make_app(
    bus: Bus,
    incidents: IncidentSource,
    clock: Clock,
    *,
    token: Secret | None = None,
    hosts: Collection[str] | None = None,
    push: asyncio.Event | None = None,
    collectors: Iterable[Collector] = (),
    warm_seconds: float = WARM_SECONDS,
    ring_bytes: int = RING_BYTES,
) -> FastAPI:
    """The application over an open ``bus``.

    With a ``token``, everything but ``/healthz`` needs it. Without, the server answers only to ``hosts``, by default
    the names of the loopback. ``push`` may be set by whoever changes an incident, to save the tenth of a second until
    it is asked for. ``collectors`` join ``/metrics``. The live state runs as long as the application's lifespan.
    """
    allowed = hosts if hosts is not None or token is not None else LOOPBACK_NAMES

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Every topic is read: a maker counts its frames over all of them, and a topic left out would look like loss.
        start = AtTime(clock.now() - warm_seconds)
        async with FanOut(bus, tuple(Topic), start=start, ring_bytes=ring_bytes) as fan, asyncio.TaskGroup() as tasks:
            services = _services(bus, incidents, clock, fan, push, collectors)
            app.state.services = services
            live = tasks.create_task(services.live.run(), name="live")
            try:
                yield
            finally:
                services.end_streams()
                live.cancel()

    app = FastAPI(
        title="Nantucket",
        description="The fleet, jobs and incidents, now. Non-finite numbers are the texts NaN, Infinity, -Infinity.",
        version="1",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.token_required = token is not None
    problems.install(app)
    app.include_router(api_router)
    app.include_router(page_router)
    app.add_middleware(Head)
    app.add_middleware(Gate, token=token, hosts=allowed)
    return app


def _services(
    bus: Bus,
    incidents: IncidentSource,
    clock: Clock,
    fan: FanOut,
    push: asyncio.Event | None,
    collectors: Iterable[Collector],
) -> Services:
    feed, broadcast = IncidentFeed(incidents), Broadcast()
    live = Live(fan, feed, broadcast, clock, push, lambda: bus_states(bus))
    registry = CollectorRegistry(auto_describe=False)
    arrow = ArrowMessages()
    registry.register(LiveCollector(live, fan, broadcast, feed, arrow, clock))
    for collector in collectors:
        registry.register(collector)
    return Services(bus, clock, fan, live, feed, GuardedSource(incidents, clock), broadcast, registry, arrow)
