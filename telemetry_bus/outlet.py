"""Where frames go up: a bus, or a gateway that passes them on. Chosen by a URL, like the bus itself.

A collector, a child gateway and everybody else who only writes telemetry needs an outlet and no bus: it cannot read.
"""

import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import urlsplit

from telemetry_bus.bus import Bus, open_bus
from telemetry_bus.errors import FrameFault, FrameRefused, InvalidPayload
from telemetry_bus.kafka_options import KafkaOptions
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic

GATEWAY_SCHEMES = frozenset({"gateway", "gateways"})
"""Plain TCP (on the loopback, or with a token in a network that is trusted), and TLS."""
TIMEOUT_SECONDS = 10.0
"""Longer than a gateway merges and its bus commits (together under 2 s with a slow object store), shorter than a person
waits. What has no answer by then is sent again; the reader's ledger drops it where it had arrived."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a finding that was reported up the tree.

    ``published``: it is durable on the bus. Otherwise a gateway has paged it while the bus is away, and ``receipts``
    are the receivers' answers: opaque texts, to be kept and sent along when the bus is back.
    """

    published: bool
    receipts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutletOptions:
    """Who connects to a gateway, and with what. A bus needs none of it."""

    node: str = ""
    region: str | None = None
    token: Secret[str] | None = None
    ca: Path | None = None
    """The authority that signed the gateway's certificate; default: those that this machine trusts."""
    cert: Path | None = None
    key: Path | None = None
    """Our own certificate and its key, where the gateway asks for one (mutual TLS)."""
    timeout_seconds: float = TIMEOUT_SECONDS
    kafka: KafkaOptions | None = None
    """How a cluster is spoken to, where frames go to a bus on one."""


class Outlet(Protocol):
    """Where frames go up."""

    url: str

    async def __aenter__(self) -> Self:
        """Open it. A far end that is away now is no error: publishing says so."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it; what has been published is durable already."""
        ...

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Hand up encoded frames, in order; durable when it returns.

        Raises :class:`~telemetry_bus.errors.BusUnavailable` where the same call may succeed later (its child
        :class:`~telemetry_bus.errors.OutletFull` says after how long), and
        :class:`~telemetry_bus.errors.FrameRefused` for what the far end will never take.
        """
        ...

    async def report(self, payload: bytes) -> Report:
        """Ripcord: hand up an encoded ``finding/1`` frame to whoever can make it durable or page it.

        Raises :class:`~telemetry_bus.errors.BusUnavailable` where nobody could.
        """
        ...

    @property
    def backlog_bytes_per_second(self) -> float:
        """The pace that is granted for the backlog just now; infinite where nobody limits it."""
        ...


class BusOutlet:
    """A bus as an outlet. It opens and closes ``bus``, unless the bus ``is_open`` already and somebody else's."""

    def __init__(self, bus: Bus, *, is_open: bool = False) -> None:
        self.url = bus.url
        self._bus, self._is_open = bus, is_open
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the bus."""
        if not self._is_open:
            await self._stack.enter_async_context(self._bus)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the bus."""
        await self._stack.aclose()

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Append ``payloads``; durable when it returns."""
        try:
            await self._bus.publish(topic, payloads, key)
        except InvalidPayload as error:
            raise FrameRefused(self.url, FrameFault.TOO_LARGE, str(error)) from error

    async def report(self, payload: bytes) -> Report:
        """Publish the finding: a bus that answers needs no other way."""
        await self.publish(Topic.FINDINGS, [payload])
        return Report(published=True)

    @property
    def backlog_bytes_per_second(self) -> float:
        """Nobody limits it."""
        return math.inf


def is_gateway(url: str) -> bool:
    """Whether ``url`` names a gateway: frames go up there, and nothing can be read."""
    return urlsplit(url).scheme in GATEWAY_SCHEMES


def open_outlet(url: str, clock: Clock, options: OutletOptions | None = None) -> Outlet:
    """The outlet behind ``url``: any bus's, or ``gateway://HOST:PORT``, ``gateways://HOST:PORT`` (TLS).

    Open it with ``async with``, which raises :class:`~telemetry_bus.errors.UnusableCredentials` for certificates that
    cannot be read. Raises :class:`~telemetry_bus.errors.UnknownBus`.
    """
    if not is_gateway(url):
        return BusOutlet(open_bus(url, clock, None if options is None else options.kafka))
    from telemetry_bus.gateway.link import GatewayOutlet  # noqa: PLC0415  who speaks to a bus need not load the link

    return GatewayOutlet(url, clock, options or OutletOptions())
