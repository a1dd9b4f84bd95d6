"""A reader that is behind gets its partitions in the order of the bus's time, whole, however they are filled."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

import pytest

from telemetry_bus import Earliest, Latest, Record, Topic
from telemetry_bus.kafka import KafkaBus
from telemetry_bus.kafka import bus as kafka_bus
from telemetry_bus.kafka.order import TimeOrder
from telemetry_bus.runtime.clock import SystemClock
from tests.telemetry_bus.kafka.reading import WAIT_SECONDS, everything

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService

SECONDS = 30
"""So many `seconds` of the fleet are written; the broker's clock only has to differ between them."""


async def fill(bus: KafkaBus, kibibytes: int) -> None:
    """Each second: large frames in some partitions, a small one elsewhere, and then the tick."""
    for second in range(SECONDS):
        frames = [
            bus.publish(Topic.GPU, [bytes(1024 * kibibytes * (number + 1))], f"node-{number}") for number in range(4)
        ]
        await asyncio.gather(*frames, bus.publish(Topic.TRAIN, [str(second).encode()], f"job-{second}"))
        await asyncio.sleep(0.003)  # the broker's clock has milliseconds: this is the next one, and no race
        await bus.publish(Topic.TICKS, [str(second).encode()])
        await asyncio.sleep(0.003)


def assert_in_order(records: list[Record]) -> None:
    """No record before one that the bus appended earlier, and no tick before the rows of its second."""
    times = [record.time for record in records]
    assert times == sorted(times)
    ticks = [number for number, record in enumerate(records) if record.topic is Topic.TICKS]
    for second, place in enumerate(ticks):
        assert sum(record.topic is Topic.GPU for record in records[:place]) == 4 * (second + 1)


async def test_partitions_and_topics_come_in_the_order_in_which_the_bus_appended(kafka: KafkaService) -> None:
    """A tick read from one partition has behind it every row that came before it in the others."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await fill(bus, 100)
        records = await everything(bus, [Topic.TICKS, Topic.GPU, Topic.TRAIN])
    assert len(records) == SECONDS * 6
    assert_in_order(records)


async def test_partitions_that_are_far_ahead_are_paused_and_nothing_of_them_is_lost(
    kafka: KafkaService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hardly any room to hold records back, the same records come, in the same order, once."""
    monkeypatch.setattr(kafka_bus, "TimeOrder", partial(TimeOrder, held_bytes_max=100_000))
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await fill(bus, 20)
        records = await everything(bus, [Topic.TICKS, Topic.GPU, Topic.TRAIN])
    assert len({(record.topic, record.partition, record.offset) for record in records}) == SECONDS * 6
    assert len(records) == SECONDS * 6
    assert_in_order(records)


async def test_live_nothing_is_held_back_for_partitions_that_are_silent(kafka: KafkaService) -> None:
    """A frame in one of sixteen partitions is read at once, whatever the others do."""
    clock = SystemClock()
    waits: list[float] = []
    async with (
        asyncio.timeout(WAIT_SECONDS),
        KafkaBus(kafka.url(partitions=16), clock) as bus,
        bus.subscribe([Topic.GPU, Topic.TICKS], Latest()) as subscription,
    ):
        await bus.publish(Topic.TICKS, [b"first: connections are made"])
        batches = aiter(subscription)
        await anext(batches)
        for number in range(20):
            began = clock.monotonic()
            await bus.publish(Topic.GPU, [b"frame"], f"node-{number}")
            assert [record.payload for record in await anext(batches)] == [b"frame"]
            waits.append(clock.monotonic() - began)
    assert sorted(waits)[10] < 0.1
    assert max(waits) < 1.0


async def test_a_reader_that_was_cancelled_loses_nothing(kafka: KafkaService) -> None:
    """Whoever waits with a deadline may give up and ask again: what was fetched meanwhile is not dropped."""
    read: list[bytes] = []
    async with (
        KafkaBus(kafka.url(partitions=1), SystemClock()) as bus,
        bus.subscribe([Topic.GPU], Earliest()) as subscription,
    ):
        for number in range(40):
            waiting = asyncio.ensure_future(anext(aiter(subscription)))
            await bus.publish(Topic.GPU, [str(number).encode()])
            await asyncio.sleep(0.002 * (number % 5))  # it is given up at any moment of a look
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                read += [record.payload for record in await waiting]
        async with asyncio.timeout(WAIT_SECONDS):
            while len(read) < 40:
                read += [record.payload for record in await anext(aiter(subscription))]
    assert read == [str(number).encode() for number in range(40)]
