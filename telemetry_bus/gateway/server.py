"""Where links come in: who may connect, how many, and what happens to those that do not keep to it."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from telemetry_bus.gateway.errors import CannotListen, OpenToAll
from telemetry_bus.gateway.gateway import Gateway
from telemetry_bus.gateway.room import Room
from telemetry_bus.gateway.server_link import ServerLink, answer_report
from telemetry_bus.gateway.tls import server_context
from telemetry_bus.runtime.address import is_loopback
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.verdict_feed import VerdictFeed

LINKS_MAX = 4_096
"""600 racks at the top, 64 nodes of a rack, or a site of a thousand nodes without racks; each holds 64 KiB at most
before its frame is given room."""
COMING_IN_BYTES_MAX = 256 * 1024 * 1024
"""Large frames of all links that have begun and not ended; what is beyond goes by and is asked for again."""
LOOK_SECONDS = 0.5
DRAIN_SECONDS_MAX = 3.0
HANDSHAKE_SECONDS_MAX = 10.0
BACKLOG = 1_024
"""A rack, or a thousand nodes, that come back at once."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where links come in, and with what. Only a loopback address may go without a token or a ``client_ca``."""

    host: str = "127.0.0.1"
    port: int = 0
    token: Secret[str] | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    links_max: int = LINKS_MAX


class LinkServer:
    """Listens for links of ``gateway``. Use it with ``async with``; then ``port`` is known.

    What ``verdicts`` hears goes down every link.
    """

    def __init__(
        self, gateway: Gateway, clock: Clock, options: ListenOptions, verdicts: VerdictFeed | None = None
    ) -> None:
        self.gateway, self.options = gateway, options
        self._verdicts = VerdictFeed(clock) if verdicts is None else verdicts
        self._verdicts.to(self._tell_all)
        self.token = options.token
        self.all_links = Room(COMING_IN_BYTES_MAX)
        self.port = options.port
        self._clock = clock
        self._links: set[ServerLink] = set()
        self._stack = AsyncExitStack()
        self._tasks: asyncio.TaskGroup | None = None
        self._told = 0

    async def __aenter__(self) -> Self:
        """Listen. Raises :class:`OpenToAll`, :class:`CannotListen` and :class:`UnusableCredentials`."""
        options = self.options
        check_doors(options)
        context = None
        if options.cert is not None:
            context = await asyncio.to_thread(server_context, options.cert, options.key, options.client_ca)
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: ServerLink(self), options.host, options.port, ssl=context, backlog=BACKLOG,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_SECONDS_MAX, start_serving=False,
            )  # fmt: skip
        except OSError as error:
            raise CannotListen(options.host, options.port, error) from error
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(self._tasks.create_task(self._look_after()).cancel)
        self._stack.push_async_callback(self._close, server)
        self.port = server.sockets[0].getsockname()[1]
        await server.start_serving()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Take no more links, answer what is under way, and hang up."""
        await self._stack.aclose()  # not told of an error in the block, which would come out in a group

    @property
    def url(self) -> str:
        """Where a collector finds this gateway."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"{'gateway' if self.options.cert is None else 'gateways'}://{host}:{self.port}"

    def now(self) -> float:
        """Monotonic seconds."""
        return self._clock.monotonic()

    def joined(self, link: ServerLink) -> bool:
        """Whether there is a place for one more; it is taken."""
        if len(self._links) >= self.options.links_max:
            return False
        self._links.add(link)
        self.gateway.counters.links += 1
        self.gateway.counters.links_now = len(self._links)
        return True

    def left(self, link: ServerLink) -> None:
        """Its place is free."""
        self._links.discard(link)
        self.gateway.counters.links_now = len(self._links)

    def report(self, link: ServerLink, id_: int, payload: bytes) -> None:
        """Find out what becomes of a report, and tell the link."""
        assert self._tasks is not None
        self._tasks.create_task(answer_report(self.gateway, link, id_, payload))

    def verdicts(self) -> Sequence[bytes]:
        """Those that a link which comes now should still hear."""
        return self._verdicts.still_valid()

    def _tell_all(self, verdict: bytes) -> None:
        for link in tuple(self._links):
            link.tell(verdict)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now, gateway = self.now(), self.gateway
            gateway.grants.bytes_per_second = gateway.backlog_bytes_per_second
            sending, silent = gateway.grants.shares(len(self._links), now)
            for link in tuple(self._links):
                link.look(now)
                link.grant(sending if gateway.grants.is_sending(link) else silent)
            self._tell_ended()

    def _tell_ended(self) -> None:
        ended = self.gateway.counters.links_ended
        if (total := ended.total()) != self._told:
            self._told = total
            reasons = ", ".join(f"{fault} {number}" for fault, number in ended.items() if number)
            _log.warning("connections refused or ended so far: %s", reasons)

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        await self.gateway.drain(DRAIN_SECONDS_MAX)
        for link in tuple(self._links):
            link.close()


def check_doors(options: ListenOptions) -> None:
    """Refuse an address that others can reach, where nobody is asked who he is."""
    asks_for_certificates = options.cert is not None and options.client_ca is not None
    if options.token is None and not asks_for_certificates and not is_loopback(options.host):
        raise OpenToAll(options.host)
