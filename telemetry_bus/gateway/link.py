"""The way up to a gateway: one connection that is kept, many frames under way on it, and jittered returns."""

import asyncio
import contextlib
import math
import random
import ssl
from collections.abc import Sequence
from typing import Self
from urllib.parse import urlsplit

from telemetry_bus.errors import BusClosed, BusUnavailable, GatewayRefused, UnknownBus
from telemetry_bus.gateway import wire
from telemetry_bus.gateway.connection import Answer, Connection
from telemetry_bus.gateway.tls import client_context
from telemetry_bus.outlet import OutletOptions, Report
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic
from telemetry_bus.verdict_feed import VerdictFeed

CONNECT_SECONDS_MAX = 3.0
"""A round trip or two, and TLS."""
FIRST_SECONDS_MAX = 1.0
"""Who publishes right after opening waits so long for the first connection, and for no other."""
RETRY_FIRST_SECONDS = 0.05
RETRY_MAX_SECONDS = 2.0
"""A gateway that comes back is found within two seconds; jitter spreads those who come back to it together."""
PING_SECONDS = 1.5
DEAD_SECONDS = 5.0
"""A far end that says nothing for so long, though it was asked, is gone: a cable that was pulled sends no reset."""
REPORT_SECONDS_MAX = 20.0
"""A gateway tries its upstream first, and then its receivers answer."""
BACKLOG_BYTES_PER_SECOND_MIN = 64 * 1024.0
"""What may be sent before a gateway has said how much, and however many return: a frame every few seconds."""


class GatewayOutlet:
    """A gateway as an outlet: ``gateway://HOST:PORT``, or ``gateways://HOST:PORT`` with TLS."""

    def __init__(self, url: str, clock: Clock, options: OutletOptions) -> None:
        self.url = url
        self._host, self._port, self._is_tls = _address(url)
        self._clock, self._options = clock, options
        self.verdicts = VerdictFeed(clock)
        """What comes down to the jobs of whoever sends by this outlet."""
        self._stack = contextlib.AsyncExitStack()
        self._connection: Connection | None = None
        self._tried = asyncio.Event()
        self._why: BaseException | str = "no connection was made yet"
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Begin to connect. A gateway that is away is no error here."""
        options = self._options
        context = None
        if self._is_tls:
            context = await asyncio.to_thread(client_context, options.ca, options.cert, options.key)
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(group.create_task(self._stay_connected(context), name=f"link {self.url}").cancel)
        self._is_open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Hang up. What is under way fails as if the gateway were away."""
        self._is_open = False
        await self._stack.aclose()  # not told of an error in the block, which would come out in a group

    @property
    def is_connected(self) -> bool:
        """Whether the gateway has let this node in and is there."""
        return self._connection is not None

    @property
    def backlog_bytes_per_second(self) -> float:
        """What the gateway granted last; very little while it has not."""
        granted = 0.0 if self._connection is None else self._connection.granted
        return max(BACKLOG_BYTES_PER_SECOND_MIN, granted)  # in this order no pace that is NaN passes

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Send frames; returns when the gateway has answered that all of them are durable upstream."""
        connection = await self._connected("take frames")
        answers: list[Answer] = []
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                for payload in payloads:
                    answers += [await connection.put(topic.value, key, payload)]
                if answers:
                    await asyncio.wait(answers)
        except TimeoutError as error:
            waited = f"no answer within {self._options.timeout_seconds:g} s"
            raise BusUnavailable(self.url, "take frames", waited) from error
        finally:
            for answer in answers:
                answer.cancel()
        for answer in answers:
            answer.result()

    async def report(self, payload: bytes) -> Report:
        """Send a finding to whoever up the tree can publish or page it."""
        connection = await self._connected("take a report")
        try:
            async with asyncio.timeout(REPORT_SECONDS_MAX):
                report = await (await connection.report(payload))
        except TimeoutError as error:
            waited = f"no answer within {REPORT_SECONDS_MAX:g} s"
            raise BusUnavailable(self.url, "take a report", waited) from error
        if report is None:
            raise BusUnavailable(self.url, "take a report", "it answered as if to a frame")
        return report

    async def reached(self) -> wire.Welcome:
        """Wait until the first try to connect has come out; raises why it did not succeed."""
        return (await self._connected("be reached")).welcome.result()

    async def _connected(self, action: str) -> Connection:
        if not self._is_open:
            raise BusClosed(self.url, action)
        if not self._tried.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS_MAX):
                    await self._tried.wait()
        if self._connection is not None:
            return self._connection
        if isinstance(self._why, GatewayRefused):
            raise self._why.with_traceback(None)  # raised many times: its traceback must not grow
        raise BusUnavailable(self.url, action, self._why if isinstance(self._why, BaseException) else None)

    async def _stay_connected(self, context: ssl.SSLContext | None) -> None:
        wait = RETRY_FIRST_SECONDS
        while True:
            began = self._clock.monotonic()
            try:
                await self._one_connection(context)
            except BusUnavailable as error:
                self._why = error
            if self._clock.monotonic() - began > RETRY_MAX_SECONDS:
                wait = RETRY_FIRST_SECONDS  # it held: this is another trouble
            self._tried.set()
            await asyncio.sleep(max(wait * random.uniform(0.5, 1.0), _asked_to_wait(self._why)))
            wait = min(2 * wait, RETRY_MAX_SECONDS)

    async def _one_connection(self, context: ssl.SSLContext | None) -> None:
        """Connect, and stay until the connection is lost: always raises why."""
        connection = Connection(self.url, self._hello(), self._clock.monotonic, self.verdicts.hear)
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                name = self._host if context is not None else None
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, self._host, self._port, ssl=context, server_hostname=name
                )
                await asyncio.shield(connection.welcome)
            self._connection = connection
            self._tried.set()
            raise await self._watched(connection)
        except TimeoutError as error:
            raise BusUnavailable(self.url, "be reached", f"no answer in {CONNECT_SECONDS_MAX:g} s") from error
        except OSError as error:  # TLS's are among them
            raise BusUnavailable(self.url, "be reached", error) from error
        finally:
            self._connection = None
            connection.end(BusUnavailable(self.url, "answer", "this side has hung up"))
            if not connection.welcome.cancelled():
                connection.welcome.exception()

    async def _watched(self, connection: Connection) -> BusUnavailable:
        while not connection.lost.done():
            await asyncio.wait({connection.lost}, timeout=PING_SECONDS)
            silent = self._clock.monotonic() - connection.heard_at
            if silent >= DEAD_SECONDS:
                connection.end(BusUnavailable(self.url, "answer", f"nothing was heard for {silent:.1f} s"))
            elif silent >= PING_SECONDS:
                connection.ping()
        return connection.lost.result()

    def _hello(self) -> wire.Hello:
        token = "" if self._options.token is None else self._options.token.reveal()
        return wire.Hello(wire.VERSION, token, self._options.node, self._options.region or "")


def _asked_to_wait(why: BaseException | str) -> float:
    """How long a gateway that refused this node wants it to stay away; never longer than :data:`RETRY_MAX_SECONDS`."""
    if not isinstance(why, GatewayRefused):
        return 0.0
    return RETRY_MAX_SECONDS if math.isnan(why.retry_after_seconds) else min(why.retry_after_seconds, RETRY_MAX_SECONDS)


def _address(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UnknownBus(url) from error
    if host is None or port is None or parts.path not in ("", "/") or parts.username is not None:
        raise UnknownBus(url)
    return host, port, parts.scheme == "gateways"
