"""The bus: one small protocol, chosen by a URL.

Offsets of a topic only grow; they need not be dense. A *group* is a name under which a reader remembers how far it has
come; it takes no part in who reads what (there is no consumer group and nothing to rebalance).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit

from telemetry_bus.errors import UnknownBus
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
    """Start at the first record whose offset is ``offset`` or more (partition 0, or each of ``partitions``).

    What is older than the log keeps cannot be had: reading begins at the oldest, and the ledger counts the hole.
    """

    offset: int = 0
    partitions: Mapping[int, int] | None = None


Start = Latest | Earliest | AtTime | AtOffset


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

    async def publish(self, topic: Topic, payloads: Sequence[bytes]) -> Sequence[int]:
        """Append ``payloads``, in order, and return their offsets once they are durable."""
        ...

    def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start]
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read ``topics`` from ``start`` on. The embedded bus yields all topics in the one order of its log."""
        ...

    async def commit(self, group: str, offsets: Mapping[Topic, int]) -> None:
        """Remember durably that ``group`` has dealt with everything before these offsets."""
        ...

    async def committed(self, group: str) -> Mapping[Topic, int]:
        """How far ``group`` has come: the next offset of each topic that it has committed."""
        ...

    async def identity(self) -> str:
        """Which log this is. A log that was made anew has another one, and old offsets mean nothing in it."""
        ...

    async def end(self, topic: Topic) -> int:
        """The offset that follows the newest record of ``topic``."""
        ...


def open_bus(url: str, clock: Clock) -> Bus:
    """The bus behind ``url``: ``file:///FOLDER`` is the embedded log. Open it with ``async with``."""
    from telemetry_bus.embedded import EmbeddedBus  # noqa: PLC0415  a role on another bus need not load SQLite

    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return EmbeddedBus(unquote(parts.path), clock)
    raise UnknownBus(url)
