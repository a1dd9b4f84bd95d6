"""The bus: one small protocol, chosen by a URL.

A topic is one or more *partitions*: the embedded log has one, a Kafka-protocol cluster as many as `nantucket bus init`
has made. Offsets of a partition only grow; they need not be dense. No partition belongs to a GPU: a *key* (a job, a
node, a rack) chooses one, so that what has to stay in order does. A *group* is a name under which a reader remembers
how far it has come; it takes no part in who reads what (there is no consumer group and nothing to rebalance): that is
said by a :class:`Slice`, a fixed set of partitions.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit

from telemetry_bus.errors import UnknownBus
from telemetry_bus.kafka_options import KafkaOptions
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class Record:
    """One payload as the bus holds it. ``time`` is the bus's clock (UTC seconds) when it was appended."""

    topic: Topic
    partition: int
    offset: int
    time: float
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Latest:
    """Start behind what is there now."""


@dataclass(frozen=True, slots=True)
class Earliest:
    """Start at the oldest that is kept."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """Start at the first record that was appended at ``time`` (UTC seconds) or later."""

    time: float


@dataclass(frozen=True, slots=True)
class AtOffset:
    """Start at the first record whose offset is ``offset`` or more (in every partition, or as ``partitions`` says).

    A partition that ``partitions`` does not name begins at its earliest. What is older than the log keeps cannot be
    had: reading begins at the oldest, and the ledger counts the hole.
    """

    offset: int = 0
    partitions: Mapping[int, int] | None = None


Start = Latest | Earliest | AtTime | AtOffset

Positions = Mapping[Topic, Mapping[int, int]]
"""The next offset, by topic and partition."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Slice ``index`` (from 0) of ``count``: the partitions ``p`` with ``p % count == index``.

    ``count`` slices read a topic once between them. A topic with one partition (ticks, findings) is read by all.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"slice {self.index}/{self.count}: expected an index from 0 to {self.count - 1}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, partitions: int) -> Sequence[int]:
        """Its partitions of a topic that has ``partitions``."""
        return range(partitions) if partitions == 1 else range(self.index, partitions, self.count)

    def among(self, partitions: Collection[int]) -> list[int]:
        """Its partitions of a topic that has these."""
        if len(partitions) == 1:
            return list(partitions)
        return [partition for partition in partitions if partition % self.count == self.index]


WHOLE = Slice()
"""Every partition."""


class Subscription(Protocol):
    """Records as they come, many at a time; also an async iterator."""

    def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        """Yield non-empty batches, oldest first; wait when there is nothing."""
        ...

    async def caught_up(self) -> bool:
        """Whether everything that was on the bus at the time of this call has been yielded."""
        ...


class Bus(Protocol):
    """Where the roles meet. All methods raise :class:`~telemetry_bus.errors.BusUnavailable` when the log is away."""

    url: str

    async def __aenter__(self) -> Self:
        """Open the bus."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it; what has been published is durable already."""
        ...

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Append ``payloads``, in order, to the partition that ``key`` chooses; their offsets once they are durable."""
        ...

    def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read ``topics``, or that ``part`` of their partitions, from ``start`` on.

        A reader that is behind gets the topics in the order of the bus's time: the embedded bus yields the one order of
        its log, others approximate it across their partitions.
        """
        ...

    async def commit(self, group: str, positions: Positions) -> None:
        """Remember durably that ``group`` has dealt with everything before ``positions``. It never goes back."""
        ...

    async def committed(self, group: str) -> Positions:
        """How far ``group`` has come, whichever of its members committed it."""
        ...

    async def identity(self) -> str:
        """Which log this is. A log that was made anew has another one, and old offsets mean nothing in it."""
        ...

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """For every partition of ``topic`` the offset that follows its newest record; 0 where it never had one."""
        ...


SEPARATOR = "|"
"""Between the URLs of several buses; a comma is between the brokers of one."""


def open_bus(url: str, clock: Clock, kafka: KafkaOptions | None = None) -> Bus:
    """The bus behind ``url``, to be opened with ``async with``.

    ``file:///FOLDER`` is the embedded log, ``kafka://HOST:PORT,.../PREFIX`` a cluster that is spoken to as ``kafka``
    says. Several of them, home first, with ``|`` between, are read as one (:mod:`telemetry_bus.federation`). Raises
    :class:`UnknownBus`.
    """
    if SEPARATOR in url:
        from telemetry_bus.federation import FederatedBus  # noqa: PLC0415  it is made of buses

        return FederatedBus([open_bus(one.strip(), clock, kafka) for one in url.split(SEPARATOR)], clock)
    if url.startswith("kafka:"):
        from telemetry_bus.kafka import KafkaBus  # noqa: PLC0415  a role on the embedded log need not load a client

        return KafkaBus(url, clock, kafka)
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        from telemetry_bus.embedded import EmbeddedBus  # noqa: PLC0415  a role on another bus need not load SQLite

        return EmbeddedBus(unquote(parts.path), clock)
    raise UnknownBus(url)
