"""The serving role: the page, the API and the metrics."""

from alerting.reader import IncidentReader
from alerting.store import StoreReader
from app.descriptors import raise_limit
from app.roles.alert import presentation
from app.wiring import Wiring
from dashboards.app import make_app
from dashboards.security import names_of
from dashboards.server import serve
from telemetry_bus.runtime.secret import Secret


async def start(wiring: Wiring) -> None:
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
