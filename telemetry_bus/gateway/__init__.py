"""The gateway: many nodes' frames in, few large ones up, durable when it says so. ``docs/gateway.md`` has the wire."""

from telemetry_bus.gateway.counters import GatewayCounters, ReportOutcome
from telemetry_bus.gateway.errors import CannotListen, GatewayError, OpenToAll
from telemetry_bus.gateway.gateway import Gateway, GatewayOptions, Pager
from telemetry_bus.gateway.link import GatewayOutlet
from telemetry_bus.gateway.merge import MergeOptions
from telemetry_bus.gateway.server import LinkServer, ListenOptions

__all__ = [
    "CannotListen",
    "Gateway",
    "GatewayCounters",
    "GatewayError",
    "GatewayOptions",
    "GatewayOutlet",
    "LinkServer",
    "ListenOptions",
    "MergeOptions",
    "OpenToAll",
    "Pager",
    "ReportOutcome",
]
