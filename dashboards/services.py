"""What the routes are given."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from starlette.responses import StreamingResponse
from starlette.types import Send

from dashboards.arrow_stream import ArrowMessages
from dashboards.guarded import GuardedSource
from dashboards.incidents import IncidentFeed
from dashboards.live import Live
from dashboards.stream import Broadcast
from telemetry_bus.bus import Bus
from telemetry_bus.fanout import FanOut
from telemetry_bus.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one `serve` process."""

    bus: Bus
    clock: Clock
    fan: FanOut
    live: Live
    feed: IncidentFeed
    incidents: GuardedSource
    broadcast: Broadcast
    registry: CollectorRegistry
    arrow: ArrowMessages

    def end_streams(self) -> None:
        """Let every endless answer end, so that the server can stop."""
        self.broadcast.close()
        self.fan.close()


def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


Given = Annotated[Services, Depends(_services)]
"""Write ``given: Given`` in a route to have the services."""


class OwnedStream(StreamingResponse):
    """A streaming answer that closes its generator when the client goes, not when the garbage is collected."""

    async def stream_response(self, send: Send) -> None:
        """Send everything; then, or when cancelled, let the generator give back what it holds."""
        try:
            await super().stream_response(send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]  # always an async generator of ours
