"""Runs the application under uvicorn, on a socket that is bound before anybody is told the port."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from dashboards.errors import CannotListen, StartFailed, TokenRequired
from dashboards.services import Services

BACKLOG = 1_024
"""A thousand walls that come back at once after a restart."""
STOP_SECONDS = 3
"""Open answers get so long to end."""


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


@asynccontextmanager
async def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Serve ``app`` while the block runs; gives the port, which is the system's choice where ``port`` is 0.

    Raises :class:`TokenRequired` for an address that others can reach while ``app`` has no token,
    :class:`CannotListen` if the address cannot be bound, and :class:`StartFailed`.
    """
    _check_address(host, port)
    if not app.state.token_required and not is_loopback(host):
        raise TokenRequired(host)
    listener = _bind(host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        lifespan="on",
    )
    server = _Server(config)
    bound: int = listener.getsockname()[1]
    with contextlib.closing(listener):
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(server.serve(sockets=[listener]), name="uvicorn")
            up = tasks.create_task(server.is_up.wait(), name="uvicorn is up")
            await asyncio.wait({running, up}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if not server.started:
                raise StartFailed(host, bound)
            try:
                yield bound
            finally:
                services: Services = app.state.services
                services.end_streams()
                server.should_exit = True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_address(host: str, port: int) -> None:
    """Refuse what looks like an address and is none, before anybody is asked for a token for it."""
    if not (":" in host or host.replace(".", "").isdigit()):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise CannotListen(host, port, OSError(errno.EADDRNOTAVAIL, str(error))) from error


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(host, port, error) from error
    listener.setblocking(False)
    return listener
