"""Runs an ASGI application under uvicorn, on a socket that is bound before anybody is told the port."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 1_024
"""A thousand walls, or nodes, that come back at once after a restart."""
STOP_SECONDS = 3
"""Open answers get so long to end."""
REQUEST_SECONDS_MAX = 10.0
"""A request's head comes so soon, or its connection ends. uvicorn itself waits for ever, and the half requests of a few
hundred strangers, who have shown no token yet, would be all the connections that there may be."""


class NotStarted(Exception):
    """The application's own start failed; the log says how."""


class _Server(uvicorn.Server):
    """uvicorn, but the signals stay with whoever runs the process, and its start can be waited for."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell who waits."""
        await super().startup(sockets)
        self.is_up.set()


class _Prompt(H11Protocol):
    """uvicorn's connection, but who begins no request, or ends none, is hung up on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._answered: object = None
        self._look = self.loop.call_later(REQUEST_SECONDS_MAX, self._look_after)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._look.cancel()
        super().connection_lost(exc)

    def _look_after(self) -> None:
        """Hang up where nothing is being answered, and nothing else has been since the last look."""
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        idle = cycle is None or cycle.response_complete
        if idle and cycle is self._answered:
            self.transport.close()
            return
        self._answered = cycle if idle else self
        self._look = self.loop.call_later(REQUEST_SECONDS_MAX, self._look_after)


@asynccontextmanager
async def running(
    app: Callable[..., Any],
    listener: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    connections_max: int | None = None,
    before_stop: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """Serve ``app`` on ``listener`` while the block runs, and close it. ``before_stop`` ends answers that never would.

    Raises :class:`NotStarted`. Above ``connections_max`` a request is answered 503.
    """
    config = uvicorn.Config(
        app,
        http=_Prompt,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=connections_max,
        lifespan="on",
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    with contextlib.closing(listener):
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]), name="uvicorn")
            up = tasks.create_task(server.is_up.wait(), name="uvicorn is up")
            await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if not server.started:
                raise NotStarted
            try:
                yield
            finally:
                before_stop()
                server.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
