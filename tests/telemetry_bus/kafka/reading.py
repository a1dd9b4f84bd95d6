"""What the tests of the Kafka bus share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from telemetry_bus import Bus, Earliest, Record, Start, Topic
from telemetry_bus.bus import WHOLE, Slice

WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


async def everything(
    bus: Bus, topics: Sequence[Topic], start: Start | Mapping[Topic, Start] | None = None, part: Slice = WHOLE
) -> list[Record]:
    """What is there now, from the earliest on unless told."""
    records: list[Record] = []
    chosen = Earliest() if start is None else start
    async with asyncio.timeout(WAIT_SECONDS), bus.subscribe(topics, chosen, part) as subscription:
        while not await subscription.caught_up():
            records += await anext(aiter(subscription))
    return records
