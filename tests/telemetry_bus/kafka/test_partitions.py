"""Partitions: a key chooses one, a slice is a fixed set of them, and nobody else has a say."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from telemetry_bus import AtOffset, BusUnavailable, Earliest, Latest, Topic
from telemetry_bus.bus import Slice
from telemetry_bus.kafka import KafkaBus
from telemetry_bus.kafka import subscription as reading
from telemetry_bus.runtime.clock import ManualClock, SystemClock
from tests.telemetry_bus.kafka.reading import WAIT_SECONDS, everything

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService

KEYS = [f"job-{number}" for number in range(40)]


async def test_a_key_chooses_the_partition_by_its_checksum(kafka: KafkaService) -> None:
    """What has one key is in one partition, in order; whoever sends it, whatever the driver would choose."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        for number in range(2):
            await asyncio.gather(*(bus.publish(Topic.TRAIN, [f"{key}:{number}".encode()], key) for key in KEYS))
        records = await everything(bus, [Topic.TRAIN])
    for key in KEYS:
        found = [record for record in records if record.payload.startswith(f"{key}:".encode())]
        assert [record.payload for record in found] == [f"{key}:0".encode(), f"{key}:1".encode()]
        assert {record.partition for record in found} == {zlib.crc32(key.encode()) % 4}
    assert {record.partition for record in records} == {0, 1, 2, 3}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6], ids=lambda count: f"{count} slices")
async def test_slices_read_every_record_once_between_them(kafka: KafkaService, count: int) -> None:
    """Whatever their number; a topic with one partition is read by each of them."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await asyncio.gather(*(bus.publish(Topic.GPU, [key.encode()], key) for key in KEYS))
        await bus.publish(Topic.TICKS, [b"tick"])
        parts = [await everything(bus, [Topic.GPU, Topic.TICKS], part=Slice(index, count)) for index in range(count)]
    read = Counter(record.payload.decode() for records in parts for record in records)
    assert read == Counter({**dict.fromkeys(KEYS, 1), "tick": count})


async def test_slices_remember_their_positions_beside_each_other(kafka: KafkaService) -> None:
    """Each slice commits its own partitions; whoever asks for the group gets all of them, also in other slices."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await bus.commit("detect", {Topic.GPU: {0: 5, 2: 7}, Topic.TICKS: {0: 10}})
        await bus.commit("detect", {Topic.GPU: {1: 3, 3: 4}, Topic.TICKS: {0: 8}})
        assert await bus.committed("detect") == {Topic.GPU: {0: 5, 1: 3, 2: 7, 3: 4}, Topic.TICKS: {0: 10}}
        await bus.commit("detect", {Topic.GPU: {0: 6, 1: 6, 2: 6, 3: 6}})
        assert (await bus.committed("detect"))[Topic.GPU] == {0: 6, 1: 6, 2: 7, 3: 6}


async def test_another_number_of_slices_goes_on_where_the_old_ones_were(kafka: KafkaService) -> None:
    """Two slices have read and committed; three go on, and between them read only what is new."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await asyncio.gather(*(bus.publish(Topic.GPU, [b"old"], key) for key in KEYS))
        for index in range(2):
            ends = {
                record.partition: record.offset + 1
                for record in await everything(bus, [Topic.GPU], part=Slice(index, 2))
            }
            await bus.commit("detect", {Topic.GPU: ends})
        await asyncio.gather(*(bus.publish(Topic.GPU, [key.encode()], key) for key in KEYS))
        start = AtOffset(partitions=(await bus.committed("detect"))[Topic.GPU])
        read = [
            record.payload.decode()
            for index in range(3)
            for record in await everything(bus, [Topic.GPU], start, Slice(index, 3))
        ]
    assert sorted(read) == sorted(KEYS)


async def test_a_partition_that_is_not_named_begins_at_its_earliest(kafka: KafkaService) -> None:
    """What nobody has committed nobody has read."""
    async with KafkaBus(kafka.url(partitions=4), SystemClock()) as bus:
        await asyncio.gather(*(bus.publish(Topic.GPU, [key.encode()], key) for key in KEYS))
        ends = await bus.ends(Topic.GPU)
        left = await everything(bus, [Topic.GPU], AtOffset(partitions={0: ends[0], 1: ends[1]}))
    assert {record.partition for record in left} == {2, 3}
    assert len(left) == ends[2] + ends[3]


async def test_an_offset_of_another_log_begins_at_the_earliest(kafka: KafkaService) -> None:
    """Beyond the end there is no record to wait for: a topic was made anew, and all of it is unread."""
    async with KafkaBus(kafka.url(partitions=1), SystemClock()) as bus:
        await bus.publish(Topic.GPU, [b"new"])
        assert [record.payload for record in await everything(bus, [Topic.GPU], AtOffset(1000))] == [b"new"]


async def test_readers_come_and_go_without_a_pause_for_the_others(kafka: KafkaService) -> None:
    """There is no group to rebalance: one reader's records keep coming while ten others start and stop."""
    clock = SystemClock()
    async with KafkaBus(kafka.url(partitions=2), clock) as bus, bus.subscribe([Topic.GPU], Latest()) as subscription:
        moments: list[float] = []

        async def read() -> None:
            async for records in subscription:
                moments.extend([clock.monotonic()] * len(records))
                if len(moments) >= 100:
                    return

        async def send() -> None:
            for number in range(100):
                await bus.publish(Topic.GPU, [b"frame"], str(number))
                await asyncio.sleep(0.01)

        async def come_and_go() -> None:
            for _ in range(10):
                await everything(bus, [Topic.GPU])

        async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as tasks:
            for work in (read(), send(), come_and_go()):
                tasks.create_task(work)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert max(gaps) < 1.0


async def test_partitions_that_were_added_are_said_to_the_reader_and_used_by_the_sender(
    kafka: KafkaService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader never stays blind to a partition: it is told to subscribe again, and then reads all of them."""
    url = kafka.url(partitions=1)
    clock = ManualClock()
    monkeypatch.setattr(reading, "COUNT_SECONDS", 0.0)
    async with KafkaBus(url, clock) as bus:
        await bus.publish(Topic.GPU, [b"before"], "job-1")
        async with bus.subscribe([Topic.GPU], Earliest()) as subscription:
            batches = aiter(subscription)
            await anext(batches)
            client = AdminClient({"bootstrap.servers": kafka.bootstrap})
            topic = f"{url.rpartition('/')[2]}.{Topic.GPU}"
            for future in client.create_partitions([NewPartitions(topic, 4)]).values():
                await asyncio.to_thread(future.result)
            with pytest.raises(BusUnavailable, match="4 partitions, and had 1"):
                async with asyncio.timeout(WAIT_SECONDS):
                    await anext(batches)
        clock.advance(61.0)
        async with asyncio.timeout(WAIT_SECONDS):
            while not [record for record in await everything(bus, [Topic.GPU]) if record.partition]:
                await bus.publish(Topic.GPU, [b"after"], "job-1")
