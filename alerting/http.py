"""The way out over HTTP: the only importer of httpx here.

One exchange sends one request, follows no redirect, reads a bounded piece of the answer and ends within a bounded time.
httpx and httpcore write whole URLs and headers into the log; a receiver's URL may hold its token, so they are muted.
"""

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from alerting.errors import Outcome

CONNECT_SECONDS_MAX = 3.0
"""A TCP and a TLS handshake across the world take under a second; one lost SYN is sent again after one."""
SILENCE_SECONDS_MAX = 5.0
"""How long a read or a write may stand still."""
TRY_SECONDS_MAX = 10.0
"""A whole exchange, so that an answer that drips byte by byte holds a place for ten seconds and no longer."""
ANSWER_BYTES_MAX = 4096
"""An answer is read for its error text only."""
KEEP_ALIVE_SECONDS = 300.0
"""Idle connections are kept as long as the other side keeps them, up to this: the next page saves the handshakes."""
CONNECTIONS_MAX = 16
"""Twice the tries that run at once against one receiver."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MUTED = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")


class NoAnswer(Exception):
    """The exchange ended without a status. ``detail`` holds nothing of the URL but its host."""

    def __init__(self, reason: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, its headers (names in lower case), and the beginning of the body."""

    status: int
    headers: Mapping[str, str]
    beginning: bytes


def _is_quiet(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


class HttpClient:
    """Keeps connections to the host of one URL. Used inside ``async with``, by any number of tasks at once."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self.shown = f"{parts.scheme}://{parts.netloc}"
        self._is_near = parts.hostname in _LOOPBACK
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Make the connection pool; reading the trusted certificates is work for a thread."""
        if self._client is not None:
            raise RuntimeError(f"the connection to {self.shown} is open already")
        for name in _MUTED:
            logging.getLogger(name).addFilter(_is_quiet)
        self._client = await asyncio.to_thread(self._make)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _make(self) -> httpx.AsyncClient:
        # httpx would read these from the disk in the event loop, while the first page waits for them.
        for lazy in ("httpcore", "anyio", "anyio._backends._asyncio"):
            importlib.import_module(lazy)
        return httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=KEEP_ALIVE_SECONDS),
            follow_redirects=False,
            # A proxy of the environment is for the way out; this machine's own services are not behind it.
            trust_env=not self._is_near,
            headers={"user-agent": "nantucket-alerting/1"},
        )

    async def exchange(self, method: str, content: bytes | None, headers: Mapping[str, str]) -> Answer:
        """One request and its answer, whatever the status. Raises :class:`NoAnswer` and nothing else."""
        if self._client is None:
            raise RuntimeError(f"the connection to {self.shown} is not open; use it inside 'async with'")
        try:
            async with asyncio.timeout(TRY_SECONDS_MAX):
                return await self._exchange(self._client, method, content, headers)
        except (TimeoutError, httpx.TimeoutException) as error:
            detail = f"no answer from {self.shown} in time ({type(error).__name__})"
            raise NoAnswer(Outcome.TIMEOUT, detail) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            why = str(error).replace(self._url, self.shown) or type(error).__name__
            raise NoAnswer(Outcome.UNREACHABLE, f"no connection with {self.shown} ({why})") from error

    async def _exchange(
        self, client: httpx.AsyncClient, method: str, content: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        async with client.stream(method, self._url, content=content, headers=dict(headers)) as response:
            try:
                beginning = await _beginning(response)
            except (httpx.HTTPError, httpx.StreamError):
                beginning = b""  # the status has been given; only the text of the answer is missing
            return Answer(response.status_code, response.headers, beginning)


async def _beginning(response: httpx.Response) -> bytes:
    """At most :data:`ANSWER_BYTES_MAX` of the answer; a longer one costs its connection, not our memory."""
    got = b""
    async for piece in response.aiter_raw(ANSWER_BYTES_MAX):
        got += piece
        if len(got) >= ANSWER_BYTES_MAX:
            break
    return got[:ANSWER_BYTES_MAX]
