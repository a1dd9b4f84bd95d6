"""The way of a verdict down: from the bus through two gateways to a collector's link, once, and to who comes late."""

from __future__ import annotations

import asyncio
from pathlib import Path

from telemetry_bus import FrameMaker, OutletOptions, Topic, encode, open_bus
from telemetry_bus.gateway import GatewayOutlet, LinkServer, ListenOptions
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.verdict_feed import KEPT_MAX, PAYLOAD_BYTES_MAX, VerdictFeed
from telemetry_bus.verdicts import VALID_SECONDS, Action, signed, verdict_frame
from tests.telemetry_bus.gateway.scene import CLOCK, FarEnd, a_gateway, until

KEY = Secret(b"k" * 32)


def verdict(step: int) -> bytes:
    """A verdict as it lies on the bus."""
    made = signed(KEY, job="leviathan", attempt="1", step=step, action=Action.STOP, nonce=f"n{step}", now=CLOCK.now())
    return encode(verdict_frame(FrameMaker("alert"), made))


async def test_a_verdict_goes_down_every_link_once_through_a_tree_and_to_who_comes_late(tmp_path: Path) -> None:
    """The bus is read once at the top; a node that connects afterwards hears what is still valid."""
    bus_url = (tmp_path / "bus").as_uri()
    async with (
        open_bus(bus_url, CLOCK) as bus,
        a_gateway(FarEnd()) as top,
        a_gateway(FarEnd()) as below,
        asyncio.TaskGroup() as group,
    ):
        feed = VerdictFeed(CLOCK)
        following = group.create_task(feed.follow(bus))
        async with (
            LinkServer(top, CLOCK, ListenOptions(), feed) as top_door,
            GatewayOutlet(top_door.url, CLOCK, OutletOptions("rack")) as up,
            LinkServer(below, CLOCK, ListenOptions(), up.verdicts) as rack_door,
            GatewayOutlet(rack_door.url, CLOCK, OutletOptions("node-1")) as early,
        ):
            heard: list[bytes] = []
            early.verdicts.to(heard.append)
            await early.reached()
            first, second = verdict(1), verdict(2)
            await bus.publish(Topic.VERDICTS, [first, first])
            await until(lambda: heard)
            async with GatewayOutlet(rack_door.url, CLOCK, OutletOptions("node-2")) as late:
                await until(late.verdicts.still_valid)
                await bus.publish(Topic.VERDICTS, [second])
                await until(lambda: len(heard) == 2 and len(late.verdicts.still_valid()) == 2)
            assert heard == [first, second]
        following.cancel()


def test_what_is_kept_for_who_comes_late_ends_and_is_bounded() -> None:
    """Neither time nor a flood fills a process."""
    clock = ManualClock()
    feed, heard = VerdictFeed(clock), list[bytes]()
    feed.to(heard.append)
    for number in range(KEPT_MAX + 10):
        feed.hear(b"%d" % number)
    feed.hear(b"x" * (PAYLOAD_BYTES_MAX + 1))
    assert (len(heard), feed.heard, len(feed.still_valid())) == (KEPT_MAX + 10, KEPT_MAX + 10, KEPT_MAX)
    clock.advance(VALID_SECONDS + 1.0)
    assert not feed.still_valid()
