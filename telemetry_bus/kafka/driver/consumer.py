"""The reading side: partitions assigned by hand, records and ends of partitions out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as RdConsumer

from telemetry_bus.errors import TopicMissing
from telemetry_bus.kafka.driver.faults import Faults, made
from telemetry_bus.kafka.settings import Setting

START, END = OFFSET_BEGINNING, OFFSET_END
"""Offsets that the cluster fills in when reading begins."""

Spot = tuple[str, int]
"""A topic, as the cluster calls it, and a partition of it."""


@dataclass(slots=True)
class Fetched:
    """What one look brought: records as (topic, partition, offset, milliseconds, key, value), and ends reached."""

    records: list[tuple[str, int, int, int, bytes | None, bytes | None]] = field(default_factory=list)
    ends: dict[Spot, int] = field(default_factory=dict)


class Consumer:
    """One consumer of the driver. It belongs to one thread at a time."""

    def __init__(self, settings: dict[str, Setting], faults: Faults, first: Mapping[Spot, int]) -> None:
        self._faults = faults
        self._consumer: RdConsumer = made(RdConsumer, settings, faults)
        self._consumer.assign([TopicPartition(topic, at, offset) for (topic, at), offset in first.items()])

    def fetch(self, timeout_seconds: float, records_max: int) -> Fetched:
        """What is there, waiting up to ``timeout_seconds`` for the first record or end. Raises BusUnavailable."""
        found = Fetched()
        first = self._consumer.poll(timeout_seconds)
        if first is not None:
            self._take(first, found)
            for message in self._consumer.consume(records_max, 0):
                self._take(message, found)
        if found.records or found.ends:
            self._faults.worked()
        elif self._faults.all_down:
            self._faults.all_down = False  # said once; where it is still so, the next call finds out
            raise self._faults.unavailable("be read")
        return found

    def _take(self, message: Message, found: Fetched) -> None:
        topic, partition, offset, error = message.topic(), message.partition(), message.offset(), message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if self._faults.concerns_groups(error):
                return
            raise self._faults.of(error, f"be read{'' if topic is None else f' from {topic}'}", topic)
        assert topic is not None
        assert partition is not None
        assert offset is not None
        if error is not None:
            found.ends[topic, partition] = offset
        else:
            found.records.append((topic, partition, offset, message.timestamp()[1], message.key(), message.value()))

    def end_seen(self, spot: Spot) -> int | None:
        """The end of a partition as the newest answer of its broker said; None where there was no answer yet."""
        _, end = self._consumer.get_watermark_offsets(TopicPartition(*spot), cached=True)
        return end if end >= 0 else None

    def pause(self, spots: Sequence[Spot]) -> None:
        """Fetch these no further; what was fetched ahead of them is fetched again later."""
        self._consumer.pause([TopicPartition(*spot) for spot in spots])

    def resume(self, spots: Sequence[Spot]) -> None:
        """Fetch these again, from where the reader is."""
        self._consumer.resume([TopicPartition(*spot) for spot in spots])

    def partitions(self, topic: str, timeout_seconds: float) -> int | None:
        """How many partitions ``topic`` has now; None where nobody answers. Raises TopicMissing."""
        try:
            found = self._consumer.list_topics(topic, timeout_seconds).topics[topic]
        except KafkaException:
            return None
        if found.error is not None and isinstance(
            fault := self._faults.of(found.error, "be read", topic), TopicMissing
        ):
            raise fault
        return len(found.partitions) or None

    def close(self) -> None:
        """Stop fetching."""
        self._consumer.close()
