"""`nantucket bus init`: the topics as they must be, made once, and never altered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]

from telemetry_bus import BusUnavailable, Topic
from telemetry_bus.embedded import DEFAULT_LIMITS
from telemetry_bus.errors import TopicMismatch
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.kafka import KafkaBus, KafkaOptions, create_topics
from telemetry_bus.runtime.clock import SystemClock

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService

MANY = {Topic.GPU, Topic.TRAIN, Topic.LINKS, Topic.METRICS, Topic.EVENTS, Topic.BACKLOG}


def config_of(kafka: KafkaService, topic: str) -> dict[str, str]:
    """How the broker says that a topic is set up."""
    client = AdminClient({"bootstrap.servers": kafka.bootstrap})
    (future,) = client.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
    return {name: entry.value for name, entry in future.result().items()}


def make(kafka: KafkaService, topic: str, partitions: int, config: dict[str, str]) -> None:
    """Make a topic as somebody else would."""
    client = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in client.create_topics([NewTopic(topic, partitions, 1, config=config)]).values():
        future.result()


async def test_every_topic_is_made_and_a_second_time_nothing_is(kafka: KafkaService) -> None:
    """It may run with every deployment, and says of each topic what became of it."""
    url = f"kafka://{kafka.bootstrap}/create-twice"
    first = await create_topics(url, KafkaOptions(), partitions=3)
    second = await create_topics(url, KafkaOptions(), partitions=3)
    third = await create_topics(url, KafkaOptions())
    wanted = {f"create-twice.{topic}": 3 if topic in MANY else 1 for topic in Topic} | {"create-twice.positions": 1}
    for reports in (first, second, third):
        assert {report.topic: report.partitions for report in reports} == wanted
    assert [{report.made for report in reports} for reports in (first, second, third)] == [{True}, {False}, {False}]


async def test_two_at_the_same_time_make_every_topic_once(kafka: KafkaService) -> None:
    """Whoever comes second finds it made."""
    url = f"kafka://{kafka.bootstrap}/create-together"
    both = await asyncio.gather(*(create_topics(url, KafkaOptions(), partitions=1) for _ in range(2)))
    made = [report.topic for reports in both for report in reports if report.made]
    assert sorted(made) == sorted(report.topic for report in both[0])


async def test_topics_take_the_largest_frame_and_the_brokers_time_and_keep_it_as_long_as_the_embedded_log(
    kafka: KafkaService,
) -> None:
    """Record.time is the bus's clock, and a frame that one bus takes the other takes."""
    url = f"kafka://{kafka.bootstrap}/create-config"
    await create_topics(url, KafkaOptions(), partitions=1)
    for topic in Topic:
        config = await asyncio.to_thread(config_of, kafka, f"create-config.{topic}")
        assert config["message.timestamp.type"] == "LogAppendTime"
        assert int(config["max.message.bytes"]) > FRAME_BYTES_MAX
        assert int(config["retention.ms"]) == DEFAULT_LIMITS[topic].age_seconds * 1000
        assert config["cleanup.policy"] == "delete"
    config = await asyncio.to_thread(config_of, kafka, "create-config.positions")
    assert config["cleanup.policy"] == "compact"


async def test_a_topic_that_does_not_fit_is_named_with_what_was_expected_and_nothing_is_made(
    kafka: KafkaService,
) -> None:
    """All faults at once, so that they are mended at once; topics of others are never altered."""
    url = f"kafka://{kafka.bootstrap}/create-wrong"
    await asyncio.to_thread(make, kafka, "create-wrong.ticks", 2, {"message.timestamp.type": "CreateTime"})
    with pytest.raises(TopicMismatch) as refused:
        await create_topics(url, KafkaOptions(), partitions=4)
    for part in (
        "create-wrong.ticks has 2 partitions, expected 1",
        "message.timestamp.type=CreateTime, expected LogAppendTime",
    ):
        assert part in str(refused.value)
    there = await asyncio.to_thread(lambda: AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics().topics)
    assert [topic for topic in there if topic.startswith("create-wrong")] == ["create-wrong.ticks"]


async def test_another_number_of_partitions_is_refused_where_it_was_asked_for(kafka: KafkaService) -> None:
    """Keys would move to other partitions: that is the operator's decision, with the cluster's own tools."""
    url = kafka.url(partitions=2)
    with pytest.raises(TopicMismatch, match=r"telemetry\.gpu has 2 partitions, expected 8"):
        await create_topics(url, KafkaOptions(), partitions=8)


async def test_more_copies_than_brokers_are_refused_in_the_clusters_words(kafka: KafkaService) -> None:
    """What was asked for and cannot be had is an error, not something less."""
    with pytest.raises(BusUnavailable, match=r"make the topic create-copies\.\S+: .*replication factor"):
        await create_topics(f"kafka://{kafka.bootstrap}/create-copies", KafkaOptions(), replication=3)


async def test_a_bus_whose_topics_were_just_made_works_at_once(kafka: KafkaService) -> None:
    """Leaders of new partitions are waited for."""
    url = f"kafka://{kafka.bootstrap}/create-and-go"
    await create_topics(url, KafkaOptions(), partitions=16)
    async with KafkaBus(url, SystemClock()) as bus:
        assert await bus.ends(Topic.GPU) == dict.fromkeys(range(16), 0)
