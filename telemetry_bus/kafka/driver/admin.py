"""The cluster's own affairs: which topics there are, where partitions begin and end, and making topics. All blocks."""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec  # type: ignore[attr-defined] # documented
from confluent_kafka.admin import NewTopic as RdNewTopic  # type: ignore[attr-defined] # the same

from telemetry_bus.errors import BusUnavailable
from telemetry_bus.kafka.driver.consumer import Spot
from telemetry_bus.kafka.driver.faults import Faults, made
from telemetry_bus.kafka.settings import Setting

CREATE_SECONDS = 30.0
"""Making a topic of many partitions takes a controller some seconds."""


LEADER_ATTEMPTS = 20
LEADER_WAIT_SECONDS = 0.05
"""A partition that was just made, or whose leader just went, has one again within a second. The client asks again for
nothing else by itself."""
_LEADERLESS = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH}
)


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic as it is to be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """A topic as it is. What a cluster does not tell is not in ``config``."""

    partitions: int
    config: Mapping[str, str]


class Administrator:
    """One administrator's client of the driver. Any thread may use it."""

    def __init__(self, settings: dict[str, Setting], faults: Faults, timeout_seconds: float) -> None:
        self._faults, self._timeout_seconds = faults, timeout_seconds
        self._client: AdminClient = made(AdminClient, settings, faults)

    def partitions(self, topics: Sequence[str]) -> dict[str, int]:
        """How many partitions each of the topics has. Raises TopicMissing for one that is not there."""
        asked = self._client.describe_topics(TopicCollection(list(topics)), request_timeout=self._timeout_seconds)
        return {
            topic: len(self._answer(future, f"say what partitions {topic} has", topic).partitions)
            for topic, future in asked.items()
        }

    def ends(self, spots: Iterable[Spot]) -> dict[Spot, int]:
        """The offset behind the newest record of each partition; a partition that does not answer is left out."""
        return self._offsets(dict.fromkeys(spots, OffsetSpec.latest()))  # type: ignore[no-untyped-call]

    def starts(self, spots: Iterable[Spot]) -> dict[Spot, int]:
        """The offset of the oldest record that each partition keeps, or would have; as :meth:`ends` otherwise."""
        return self._offsets(dict.fromkeys(spots, OffsetSpec.earliest()))  # type: ignore[no-untyped-call]

    def at_time(self, spots: Iterable[Spot], milliseconds: int) -> dict[Spot, int]:
        """The first offset appended then or later, or -1 where there is none; who does not answer is left out."""
        return self._offsets(dict.fromkeys(spots, OffsetSpec.for_timestamp(milliseconds)))

    def _offsets(self, wanted: Mapping[Spot, Any]) -> dict[Spot, int]:
        found: dict[Spot, int] = {}
        refused: dict[Spot, KafkaError] = {}
        for attempt in range(LEADER_ATTEMPTS):
            if attempt:
                time.sleep(LEADER_WAIT_SECONDS)
            left = {spot: spec for spot, spec in wanted.items() if spot not in found}
            refused = self._list_offsets(left, found)
            if not any(error.code() in _LEADERLESS for error in refused.values()):
                break
        if wanted and not found:
            (topic, _), error = next(iter(refused.items()))
            raise self._fault(error, f"say where {topic} begins and ends", topic)
        return found

    def _list_offsets(self, wanted: Mapping[Spot, Any], found: dict[Spot, int]) -> dict[Spot, KafkaError]:
        """Ask once; put what is answered into ``found`` and return what is not."""
        if not wanted:
            return {}
        asked = self._client.list_offsets(
            {TopicPartition(*spot): spec for spot, spec in wanted.items()}, request_timeout=self._timeout_seconds
        )
        refused = {}
        for place, future in asked.items():
            try:
                found[place.topic, place.partition] = int(future.result().offset)
            except KafkaException as error:
                refused[place.topic, place.partition] = error.args[0]
        return refused

    def brokers(self) -> int:
        """How many brokers the cluster has."""
        try:
            return len(self._client.list_topics(timeout=self._timeout_seconds).brokers)
        except KafkaException as error:
            raise self._fault(error.args[0], "say what brokers it has") from None

    def described(self, topics: Sequence[str]) -> dict[str, TopicConfig]:
        """Those of the topics that are there."""
        try:
            there = self._client.list_topics(timeout=self._timeout_seconds).topics
        except KafkaException as error:
            raise self._fault(error.args[0], "say what topics it has") from None
        present = [topic for topic in topics if topic in there]
        if not present:
            return {}
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in present]
        asked = self._client.describe_configs(resources, request_timeout=self._timeout_seconds)
        found = {}
        for resource, future in asked.items():
            entries = self._answer(future, f"say how {resource.name} is set up")
            config = {name: str(entry.value) for name, entry in entries.items() if entry.value is not None}
            found[resource.name] = TopicConfig(len(there[resource.name].partitions), config)
        return found

    def create(self, topics: Sequence[NewTopic]) -> dict[str, bool]:
        """Make the topics, and say of each whether it was made; False if somebody else was faster."""
        if not topics:
            return {}
        wanted = [
            RdNewTopic(topic.name, topic.partitions, topic.replication, config=dict(topic.config)) for topic in topics
        ]
        made_now = {}
        asked = self._client.create_topics(
            wanted, operation_timeout=CREATE_SECONDS, request_timeout=CREATE_SECONDS + self._timeout_seconds
        )
        for topic, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._fault(error.args[0], f"make the topic {topic}") from None
            made_now[topic] = future.exception() is None
        self._wait_for(list(made_now))
        return made_now

    def _wait_for(self, topics: Sequence[str]) -> None:
        """Wait until topics that were just made can be used: brokers hear of them one after the other."""
        deadline = time.monotonic() + CREATE_SECONDS
        while True:
            try:
                counts = self.partitions(topics)
                self.ends((topic, partition) for topic, count in counts.items() for partition in range(count))
                return
            except BusUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LEADER_WAIT_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        del self._client

    def _answer(self, future: "Future[Any]", action: str, topic: str | None = None) -> Any:
        try:
            answer = future.result()
        except KafkaException as error:
            raise self._fault(error.args[0], action, topic) from None
        self._faults.worked()
        return answer

    def _fault(self, error: KafkaError, action: str, topic: str | None = None) -> Exception:
        self._client.poll(0)  # so that what the driver has to say about its connections is heard
        return self._faults.of(error, action, topic)
