"""A finding's whole way while the bus is away: a node's link, the gateway, its pager, a receiver, and back again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from alerting import Pager, Routing, Store
from telemetry_bus import Bus, BusUnavailable, FrameMaker, Topic, encode, findings_frame, open_bus
from telemetry_bus.gateway import Gateway, GatewayOptions
from telemetry_bus.outlet import OutletOptions, open_outlet
from tests.alerting.scenes import CLOCK, finding, settings
from tests.alerting.test_receipts import incidents
from tests.alerting.test_service import alerting
from tests.fakes.webhook_server import WebhookServer
from tests.telemetry_bus.gateway.scene import FarEnd, listening

PAGE_SECONDS_MAX = 1.0
"""What is promised for a finding during an outage, from its being reported to the receiver."""


class BusBehind(FarEnd):
    """What stands behind the gateway is a real bus, which nobody reaches while it is ``away``."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Publish, or be away."""
        await super().publish(topic, payloads, key)
        await self._bus.publish(topic, payloads, key)


@pytest.fixture
def hook_server() -> Iterator[WebhookServer]:
    """Return a running receiver that takes everything."""
    with WebhookServer() as server:
        yield server


async def test_a_finding_is_paged_by_the_gateway_within_a_second_and_not_again(
    tmp_path: Path, hook_server: WebhookServer
) -> None:
    """The node holds no secret, the page is there at once, and when the bus is back nobody is told a second time."""
    maker, clock = FrameMaker("node-1/ripcord"), asyncio.get_running_loop().time
    receivers = [settings(hook_server, "ops0").build(CLOCK)]
    async with open_bus((tmp_path / "bus").as_uri(), CLOCK) as bus, Pager(receivers, Routing(), CLOCK) as pager:
        far_end = BusBehind(bus)
        async with (
            Gateway(far_end, CLOCK, GatewayOptions(), pager.page) as gateway,
            listening(gateway) as server,
            open_outlet(server.url, CLOCK, OutletOptions(node="node-1")) as outlet,
        ):
            far_end.away = BusUnavailable(far_end.url, "publish", "it was stopped")
            began = clock()
            paged = await outlet.report(encode(findings_frame(maker, [finding()], CLOCK.now())))
            assert clock() - began < PAGE_SECONDS_MAX
            assert len(hook_server.arrivals) == 1
            far_end.away = None
            said = replace(finding(), evidence={"ripcord": {"receipts": list(paged.receipts)}})
            async with asyncio.timeout(20):
                while not (await outlet.report(encode(findings_frame(maker, [said], CLOCK.now())))).published:
                    await asyncio.sleep(0.05)
        async with Store(tmp_path / "alerts.db") as store, alerting(bus, store, hook_server):
            (incident,) = await incidents(store)
    assert incident["deliveries"][0]["state"] == "delivered"
    assert len(hook_server.arrivals) == 1
