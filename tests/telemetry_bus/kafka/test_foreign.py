"""What others have written, deleted or not made: readers go on, and say what is to be done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from telemetry_bus import Earliest, FrameFault, Intake, Latest, Topic
from telemetry_bus.errors import TopicMissing
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.kafka import KafkaBus
from telemetry_bus.kafka import subscription as reading
from telemetry_bus.runtime.clock import SystemClock
from tests.telemetry_bus.kafka.reading import WAIT_SECONDS, everything

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService


def name(url: str, topic: str) -> str:
    """What a topic is called on the cluster."""
    return f"{url.rpartition('/')[2]}.{topic}"


def write(kafka: KafkaService, topic: str, *values: bytes | None, key: bytes | None = None) -> None:
    """Write as any other program may: past our bus."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for value in values:
        producer.produce(topic, value, key=key, partition=0)
    assert producer.flush(WAIT_SECONDS) == 0


async def test_garbage_and_records_without_a_value_are_refused_with_a_reason_and_the_rest_goes_on(
    kafka: KafkaService,
) -> None:
    """Everything in a topic reaches the reader; intake tells frames from what is none."""
    url, clock = kafka.url(partitions=1), SystemClock()
    frame = FrameMaker("node-1/ticks").make("tick/1", {"time": [clock.now()]}, clock.now())
    async with KafkaBus(url, clock) as bus:
        await asyncio.to_thread(write, kafka, name(url, Topic.TICKS), b"garbage" * 100, None, b"")
        await bus.publish(Topic.TICKS, [encode(frame)])
        intake = Intake()
        taken = [intake.take(record) for record in await everything(bus, [Topic.TICKS])]
    reasons = [[refusal.reason for refusal in one.refusals] for one in taken]
    assert reasons == [[FrameFault.NOT_A_FRAME], [FrameFault.TOO_SHORT], [FrameFault.TOO_SHORT], []]
    assert taken[-1].frame is not None


async def test_what_others_write_among_the_positions_is_passed_over(kafka: KafkaService) -> None:
    """A position is believed only if it is one."""
    url = kafka.url(partitions=1)
    async with KafkaBus(url, SystemClock()) as bus:
        identity = await bus.identity()
        await bus.commit("detect", {Topic.GPU: {0: 7}})
        for key in (b"garbage", None, b'["commit","detect","x"]', b'["commit",1,2]', b"[]", b'"identity"'):
            await asyncio.to_thread(write, kafka, name(url, "positions"), b'{"no topic": {"0": 99}}', None, key=key)
        assert await bus.committed("detect") == {Topic.GPU: {0: 7}}
        assert await bus.identity() == identity


async def test_two_that_ask_first_at_the_same_time_get_the_same_identity(kafka: KafkaService) -> None:
    """The first that was written is the log's, whoever wrote it."""
    url = kafka.url(partitions=1)
    async with KafkaBus(url, SystemClock()) as left, KafkaBus(url, SystemClock()) as right:
        assert len(set(await asyncio.gather(*(bus.identity() for bus in (left, right) for _ in range(3))))) == 1


async def test_a_topic_that_is_missing_is_named_with_the_command_that_makes_it(kafka: KafkaService) -> None:
    """Nothing makes topics by itself; whoever waits is told what to run."""
    async with KafkaBus(f"kafka://{kafka.bootstrap}/nobody-made-this", SystemClock()) as bus:

        async def subscribe() -> None:
            async with bus.subscribe([Topic.GPU], Latest()):
                pass

        for call in (
            bus.publish(Topic.GPU, [b"frame"]),
            bus.ends(Topic.GPU),
            bus.commit("detect", {Topic.GPU: {0: 1}}),
            bus.committed("detect"),
            bus.identity(),
            subscribe(),
        ):
            with pytest.raises(TopicMissing, match=r"nobody-made-this\..*nantucket bus init"):
                await call
    there = await asyncio.to_thread(lambda: AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics().topics)
    assert not [topic for topic in there if topic.startswith("nobody-made-this")]


async def test_a_topic_that_is_deleted_under_a_reader_is_named(
    kafka: KafkaService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader does not wait for ever for a topic that is gone."""
    monkeypatch.setattr(reading, "COUNT_SECONDS", 0.0)
    url = kafka.url(partitions=1)
    async with KafkaBus(url, SystemClock()) as bus:
        await bus.publish(Topic.GPU, [b"frame"])
        async with bus.subscribe([Topic.GPU], Earliest()) as subscription:
            batches = aiter(subscription)
            await anext(batches)
            client = AdminClient({"bootstrap.servers": kafka.bootstrap})
            for future in client.delete_topics([name(url, Topic.GPU)]).values():
                await asyncio.to_thread(future.result)
            with pytest.raises(TopicMissing, match=r"telemetry\.gpu"):
                async with asyncio.timeout(WAIT_SECONDS):
                    await anext(batches)
