"""What only the embedded log promises of its bounds and its clock: they hold to the record and to the instant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from telemetry_bus import AtTime, Earliest, Record, Start, Topic
from telemetry_bus.embedded import EmbeddedBus, TopicLimit
from telemetry_bus.runtime.clock import ManualClock

WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""
PLENTY = 1 << 40
FOR_EVER = 1e9


def limits(keep_bytes: int = PLENTY, keep_seconds: float = FOR_EVER) -> Mapping[Topic, TopicLimit]:
    """The same bound for every topic."""
    return dict.fromkeys(Topic, TopicLimit(keep_bytes, keep_seconds))


async def kept(bus: EmbeddedBus, start: Start | None = None) -> list[Record]:
    """What telemetry.train holds from `start` on."""
    records: list[Record] = []
    async with bus.subscribe([Topic.TRAIN], Earliest() if start is None else start) as subscription:
        while not await subscription.caught_up():
            records += await anext(aiter(subscription))
    return records


async def trimmed(bus: EmbeddedBus, clock: ManualClock, wanted: Callable[[list[Record]], bool]) -> list[Record]:
    """What is kept, as soon as it is as wanted; time passes and the bus is used meanwhile."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not wanted(records := await kept(bus)):
            clock.advance(6.0)
            await bus.commit("whoever", {Topic.GPU: {0: 1}})
    return records


async def test_what_is_beyond_the_bound_in_age_goes(tmp_path: Path) -> None:
    """The bus's clock at appending is what ages."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path, clock, limits(keep_seconds=6000.0)) as bus:
        await bus.publish(Topic.TRAIN, [b"old"])
        clock.advance(4000.0)
        await bus.publish(Topic.TRAIN, [b"young"])
        clock.advance(2000.0)
        records = await trimmed(bus, clock, lambda records: len(records) < 2)
        assert [record.payload for record in records] == [b"young"]


async def test_the_bound_holds_for_a_publisher_of_many_records(tmp_path: Path) -> None:
    """However many records come with one call, trimming keeps up with them."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path, clock, limits(keep_bytes=100_000)) as bus:
        for _ in range(10):
            await bus.publish(Topic.TRAIN, [bytes(100)] * 2000)
            clock.advance(10.0)
        await bus.commit("whoever", {Topic.GPU: {0: 1}})
        await bus.commit("whoever", {Topic.GPU: {0: 1}})
        assert len(await kept(bus)) <= 3000


async def test_a_reader_whose_records_were_trimmed_reads_what_is_kept_and_nothing_else(tmp_path: Path) -> None:
    """It has fetched nothing ahead: what was trimmed under its feet is gone for it too."""
    clock = ManualClock()
    async with (
        EmbeddedBus(tmp_path, clock, limits(keep_bytes=1000)) as bus,
        bus.subscribe([Topic.TRAIN], Earliest()) as subscription,
    ):
        batches = aiter(subscription)
        await bus.publish(Topic.TRAIN, [bytes(100)])
        await anext(batches)
        await bus.publish(Topic.TRAIN, [bytes(100)] * 500)
        records = await trimmed(bus, clock, lambda records: len(records) <= 10)
        assert list(await anext(batches)) == records


async def test_a_record_has_the_time_of_the_clock_at_appending(tmp_path: Path) -> None:
    """The clock that the bus was given is the bus's clock, and a time between two records begins with the later."""
    clock = ManualClock(1000.0)
    async with EmbeddedBus(tmp_path, clock) as bus:
        for number in range(3):
            await bus.publish(Topic.TRAIN, [str(number).encode()])
            clock.advance(10.0)
        assert [record.time for record in await kept(bus)] == [1000.0, 1010.0, 1020.0]
        assert [record.payload for record in await kept(bus, AtTime(1010.0))] == [b"1", b"2"]
        assert [record.payload for record in await kept(bus, AtTime(1010.5))] == [b"2"]
