"""How verdicts come down to a process: from the bus, or from the gateway above where it cannot read the bus."""

from app.wiring import Wiring
from telemetry_bus.gateway import GatewayOutlet
from telemetry_bus.verdict_feed import VerdictFeed


def verdict_feed(wiring: Wiring) -> VerdictFeed:
    """What this process hears. It is read until the process ends."""
    if isinstance(wiring.outlet, GatewayOutlet):
        return wiring.outlet.verdicts
    feed = VerdictFeed(wiring.clock)
    wiring.tasks.create_task(feed.follow(wiring.bus), name="verdicts")
    return feed
