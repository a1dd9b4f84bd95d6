"""``/metrics`` and ``/healthz`` of a process that serves no page: ``collect``, ``detect`` or ``alert`` on its own.

A small server of the standard library in threads of its own, so that a node's collector needs no web framework. The
figures are read inside the event loop, between two of its steps: no counter changes while it is read, and a loop that
is stuck is said by ``/healthz``.
"""

import asyncio
import hmac
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from app.settings import SettingsError
from dashboards.errors import CannotListen, TokenRequired
from dashboards.metrics import CONTENT_TYPE, exposition
from telemetry_bus.runtime.address import is_loopback
from telemetry_bus.runtime.secret import Secret

LOOP_SECONDS_MAX = 5.0
"""A loop that does not answer for so long is stuck: a step of ours takes milliseconds."""
REQUEST_SECONDS_MAX = 10.0
"""Who does not finish a request within that is hung up on."""
REQUESTS_AT_ONCE_MAX = 8
"""Prometheus, its twin, and a few people; one more is answered 503."""


@asynccontextmanager
async def figures(collector: Collector, host: str, port: int, token: Secret[str] | None) -> AsyncIterator[int]:
    """Serve the figures of ``collector`` while the block runs; gives the port (the system's choice where it is 0).

    Raises :class:`TokenRequired` for an address that others can reach without a ``token``, :class:`CannotListen`, and
    :class:`~app.settings.SettingsError` for an address that this small server does not know.
    """
    if token is None and not is_loopback(host):
        raise TokenRequired(host)
    if ":" in host:
        raise SettingsError(f"metrics.host: found {host!r}; expected an IPv4 address or a name, such as 127.0.0.1")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    loop = asyncio.get_running_loop()

    async def read() -> bytes:
        return exposition(registry)

    def in_the_loop() -> bytes:
        return asyncio.run_coroutine_threadsafe(read(), loop).result(LOOP_SECONDS_MAX)

    try:
        server = _Server((host, port), in_the_loop, token)
    except OSError as error:
        raise CannotListen(host, port, error) from error
    serving = threading.Thread(target=server.serve_forever, name="figures", daemon=True)
    serving.start()
    try:
        yield server.server_address[1]
    finally:
        await asyncio.to_thread(_stop, server, serving)


def _stop(server: "_Server", serving: threading.Thread) -> None:
    server.shutdown()
    serving.join()
    server.server_close()


class _Server(ThreadingHTTPServer):
    """Threads that ask the loop through ``read``."""

    daemon_threads = True
    # Requests that are being answered wait for the loop, which goes on at a stop: they are not waited for.
    block_on_close = False

    def __init__(self, address: tuple[str, int], read: Callable[[], bytes], token: Secret[str] | None) -> None:
        self.read, self.token = read, token
        self.places = threading.BoundedSemaphore(REQUESTS_AT_ONCE_MAX)
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Answers ``GET /metrics`` and ``GET /healthz``."""

    server: _Server

    timeout = REQUEST_SECONDS_MAX
    server_version, sys_version = "nantucket", ""

    def do_GET(self) -> None:
        """Answer."""
        if not self.server.places.acquire(blocking=False):
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once: ask again")
            return
        try:
            self._answer()
        finally:
            self.server.places.release()

    def _answer(self) -> None:
        if self.path not in ("/metrics", "/healthz"):
            self._say(HTTPStatus.NOT_FOUND, "expected /metrics or /healthz")
            return
        given = self.headers.get("authorization", "")
        if self.path == "/metrics" and not self._may_read(given):
            self._say(HTTPStatus.UNAUTHORIZED, "a token is needed: send `Authorization: Bearer TOKEN`")
            return
        try:
            figures = self.server.read()
        except TimeoutError:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"the process did not answer within {LOOP_SECONDS_MAX:g} s")
            return
        if self.path == "/metrics":
            self._say(HTTPStatus.OK, figures, CONTENT_TYPE)
        else:
            self._say(HTTPStatus.OK, "ok")

    def _may_read(self, given: str) -> bool:
        token = self.server.token
        return token is None or hmac.compare_digest(given.encode(), f"Bearer {token.reveal()}".encode())

    def _say(self, status: HTTPStatus, body: str | bytes, kind: str = "text/plain; charset=utf-8") -> None:
        content = f"{body}\n".encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Bearer realm="nantucket"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing of each scrape."""
