"""Runs the page under uvicorn: where it may listen, and with what."""

import errno
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from dashboards.errors import CannotListen, StartFailed, TokenRequired
from dashboards.services import Services
from telemetry_bus.runtime.address import is_loopback
from telemetry_bus.runtime.http_server import NotStarted, bind, running


@asynccontextmanager
async def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Serve ``app`` while the block runs; gives the port, which is the system's choice where ``port`` is 0.

    Raises :class:`TokenRequired` for an address that others can reach while ``app`` has no token,
    :class:`CannotListen` if the address cannot be bound, and :class:`StartFailed`.
    """
    _check_address(host, port)
    if not app.state.token_required and not is_loopback(host):
        raise TokenRequired(host)
    try:
        listener = bind(host, port)
    except OSError as error:
        raise CannotListen(host, port, error) from error
    bound: int = listener.getsockname()[1]

    def end_streams() -> None:
        services: Services = app.state.services  # made by the application's own start
        services.end_streams()

    try:
        async with running(app, listener, before_stop=end_streams):
            yield bound
    except* NotStarted as error:
        raise StartFailed(host, bound) from error


def _check_address(host: str, port: int) -> None:
    """Refuse what looks like an address and is none, before anybody is asked for a token for it."""
    if not (":" in host or host.replace(".", "").isdigit()):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise CannotListen(host, port, OSError(errno.EADDRNOTAVAIL, str(error))) from error
