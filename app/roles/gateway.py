"""The gateway's role: links and HTTP in, the bus or another gateway above, and a pager where there are receivers."""

import asyncio

from app.roles.alert import pager_of
from app.settings import Settings, secret, secret_of
from app.telemetry import gateway_metrics, ingest_metrics, pager_metrics
from app.verdicts import verdict_feed
from app.wiring import Wiring
from collectors.credentials import JobCredentials
from telemetry_bus.gateway import Gateway, GatewayOptions, LinkServer, ListenOptions, MergeOptions, Pager
from telemetry_bus.gateway.entry import LANES
from telemetry_bus.gateway.http import make_gateway_app, serve_gateway_app
from telemetry_bus.gateway.ingest import Ingest, IngestOptions, check_of, encoded
from telemetry_bus.gateway.ingest_routes import ingest_router
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret


async def start(wiring: Wiring) -> None:
    """Frames of many nodes in, few large ones up."""
    settings = wiring.settings
    listen = _listening(settings, settings.gateway.port)
    pager = await _pager(wiring)
    gateway = await wiring.stack.enter_async_context(Gateway(wiring.outlet, wiring.clock, _options(settings), pager))
    wiring.gauges.add(lambda: gateway_metrics(gateway))
    if settings.gateway.http_port is not None:
        ingest = await _ingest(settings, gateway, wiring.clock)
        wiring.gauges.add(lambda: ingest_metrics(ingest))
        app = make_gateway_app(gateway, token=listen.token, routers=[ingest_router(ingest)])
        http = serve_gateway_app(app, _listening(settings, settings.gateway.http_port))
        wiring.said["gateway_http"] = await wiring.stack.enter_async_context(http)
    server = LinkServer(gateway, wiring.clock, listen, verdict_feed(wiring))
    links = await wiring.stack.enter_async_context(server)
    wiring.said["gateway"] = links.url


async def _ingest(settings: Settings, gateway: Gateway, clock: Clock) -> Ingest:
    """Training rows as JSON, remote write and OTLP; a job's token is what ``nantucket job token`` makes here."""
    of_jobs = Secret(await asyncio.to_thread(secret_of, settings.state))
    options = IngestOptions(
        accept=encoded(gateway.publish),
        clock=clock,
        check_job=JobCredentials(of_jobs).check,
        check_gateway=check_of(secret(settings.gateway.token)),
        region=settings.region,
    )
    return Ingest(options)


async def _pager(wiring: Wiring) -> Pager | None:
    pager = pager_of(wiring.settings, wiring.clock)
    if pager is None:
        return None
    await wiring.stack.enter_async_context(pager)
    wiring.gauges.add(lambda: pager_metrics(pager.stats, pager.waiting))
    if wiring.opened_bus is not None:  # what was said there tells of which episode a trouble is
        wiring.tasks.create_task(pager.follow(wiring.opened_bus), name="pager")
    return pager.page


def _options(settings: Settings) -> GatewayOptions:
    chosen = settings.gateway
    return GatewayOptions(
        name=settings.node,
        group=chosen.group or settings.node,
        lanes=1 if settings.bus_url.startswith("file:") else LANES,
        merging=MergeOptions(seconds=chosen.merge_seconds),
        in_flight_bytes_max=chosen.in_flight_bytes,
        backlog_bytes_per_second=chosen.backlog_bytes_per_second,
        report_seconds=chosen.report_seconds,
    )


def _listening(settings: Settings, port: int) -> ListenOptions:
    chosen = settings.gateway
    return ListenOptions(
        host=chosen.host,
        port=port,
        token=secret(chosen.token),
        cert=chosen.cert,
        key=chosen.key,
        client_ca=chosen.client_ca,
    )
