"""`nantucket bus init`: makes the topics, or says what of those that are there is not as it must be."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from telemetry_bus.errors import TopicMismatch
from telemetry_bus.kafka import settings
from telemetry_bus.kafka.address import POSITIONS, Address, parse
from telemetry_bus.kafka.driver import Administrator, Faults, NewTopic, TopicConfig
from telemetry_bus.kafka.settings import MESSAGE_BYTES_MAX
from telemetry_bus.kafka_options import KafkaOptions
from telemetry_bus.topics import TELEMETRY, Topic

PARTITIONS = 32
"""Of each telemetry topic: the fleet's 65 MiB/s are 2 MiB/s in each, and up to 32 slices of detectors share them."""
REPLICATION = 3
"""Copies of each record, where the cluster has so many brokers."""
SPREAD = (*TELEMETRY, Topic.BACKLOG)
"""Topics with many partitions. All others are small, and read by everybody: they have one."""
POSITIONS_SEGMENT_BYTES = 16 * 1024 * 1024
"""A commit has some 300 bytes. Only closed segments are compacted, so a reader of positions reads about this much."""


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What became of one topic: it was made, or was there already."""

    topic: str
    partitions: int
    made: bool


async def create_topics(
    url: str, options: KafkaOptions, *, partitions: int | None = None, replication: int | None = None
) -> Sequence[TopicReport]:
    """Make what is missing. Nothing is made where something that is there does not fit.

    ``partitions`` of None is :data:`PARTITIONS` for topics that are made, and anything for those that are there;
    ``replication`` of None is :data:`REPLICATION`, or the number of brokers if there are fewer.
    Raises :class:`TopicMismatch`, :class:`BusUnavailable`.
    """
    return await asyncio.to_thread(_create, parse(url), options, partitions, replication)


def _create(
    address: Address, options: KafkaOptions, partitions: int | None, replication: int | None
) -> Sequence[TopicReport]:
    faults = Faults(str(address))
    administrator = Administrator(settings.connection(address.servers, options), faults, options.timeout_seconds)
    copies = min(REPLICATION, administrator.brokers()) if replication is None else replication
    wanted = topics(address, PARTITIONS if partitions is None else partitions, copies)
    there = administrator.described([topic.name for topic in wanted])
    if found := [
        fault
        for topic in wanted
        if topic.name in there
        for fault in _faults(topic, there[topic.name], any_count=partitions is None)
    ]:
        raise TopicMismatch(str(address), found)
    made = administrator.create([topic for topic in wanted if topic.name not in there])
    return [
        TopicReport(
            topic.name,
            there[topic.name].partitions if topic.name in there else topic.partitions,
            made.get(topic.name, False),
        )
        for topic in wanted
    ]


def topics(address: Address, partitions: int, replication: int) -> Sequence[NewTopic]:
    """Every topic as it is to be."""
    # Acknowledged is what all but one copy have: a broker may be away, and no acknowledged record has one copy only.
    durable = {"min.insync.replicas": str(max(1, replication - 1)), "max.message.bytes": str(MESSAGE_BYTES_MAX)}
    made = [
        NewTopic(
            address.name(topic),
            partitions if topic in SPREAD else 1,
            replication,
            {
                **durable,
                "message.timestamp.type": "LogAppendTime",
                "cleanup.policy": "delete",
                "retention.ms": str(milliseconds),
            },
        )
        for topic, milliseconds in _ages().items()
    ]
    compacted = {"cleanup.policy": "compact", "segment.bytes": str(POSITIONS_SEGMENT_BYTES)}
    return [*made, NewTopic(address.name(POSITIONS), 1, replication, {**durable, **compacted})]


def _ages() -> Mapping[Topic, int]:
    """How long a topic is kept, in milliseconds: as long as in the embedded log."""
    from telemetry_bus.embedded import DEFAULT_LIMITS  # noqa: PLC0415  who only reads a cluster need not load SQLite

    return {topic: int(DEFAULT_LIMITS[topic].age_seconds * 1000) for topic in Topic}


def _faults(wanted: NewTopic, found: TopicConfig, *, any_count: bool) -> list[str]:
    """What of a topic that is there does not fit. How long it is kept is its operator's choice."""
    faults = []
    single = wanted.partitions == 1
    if found.partitions != wanted.partitions and (single or not any_count):
        faults.append(f"{wanted.name} has {found.partitions} partitions, expected {wanted.partitions}")
    faults += [
        f"{wanted.name} has {key}={found.config[key]}, expected {wanted.config[key]}"
        for key in ("message.timestamp.type", "cleanup.policy")
        if key in wanted.config and found.config.get(key, wanted.config[key]) != wanted.config[key]
    ]
    largest = found.config.get("max.message.bytes", str(MESSAGE_BYTES_MAX))
    if int(largest) < MESSAGE_BYTES_MAX:
        faults.append(f"{wanted.name} has max.message.bytes={largest}, expected {MESSAGE_BYTES_MAX} or more")
    return faults
