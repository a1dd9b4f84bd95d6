"""A webhook receiver as a user would write one: real HTTP, verifies every signature, and honours the id."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass(frozen=True)
class Arrival:
    """One request whose signature was right."""

    id: str
    body: dict[str, Any]
    answered: int


@dataclass(frozen=True)
class Answer:
    """What the receiver says to one request; ``before`` runs first, with the arrival's id."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    before: Callable[[str], object] | None = None


class WebhookServer:
    """Listens on a free port of this machine, in a thread. ``answers`` are given in order, then ``otherwise``."""

    def __init__(self, otherwise: Answer | None = None, port: int = 0) -> None:
        self.answers: deque[Answer] = deque()
        self.otherwise = Answer() if otherwise is None else otherwise
        self.arrivals: list[Arrival] = []
        self.unsigned = 0
        self.connections = 0
        self._changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def do_POST(self) -> None:
                server._take(self)

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        class Listener(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_args: object) -> None:
                """A client that went away, or a test that slams the door, is no news."""

        self._http = Listener(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Where it takes deliveries."""
        return f"http://127.0.0.1:{self.port}/hooks/nantucket-token-4711"

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        """Stop."""
        self._http.shutdown()
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._http.server_close()

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        answer = self.answers.popleft() if self.answers else self.otherwise
        identity = request.headers["webhook-id"]
        try:
            Webhook(SECRET).verify(body, dict(request.headers.items()))
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not from Nantucket
            answer, identity = Answer(401, body=b"not signed by Nantucket"), ""
        if answer.before is not None:
            answer.before(identity)
        if identity:
            self._note(Arrival(identity, json.loads(body), answer.status))
        else:
            self.unsigned += 1
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(answer.body)))
        request.end_headers()
        request.wfile.write(answer.body)

    def _note(self, arrival: Arrival) -> None:
        with self._changed:
            self.arrivals.append(arrival)
            self._changed.notify_all()

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The bodies that were taken (answered with 2xx), each id once, in the order of their first arrival."""
        bodies: dict[str, dict[str, Any]] = {}
        for arrival in list(self.arrivals):
            if 200 <= arrival.answered < 300:
                bodies.setdefault(arrival.id, arrival.body)
        return list(bodies.values())

    def wait_for(self, is_enough: Callable[[WebhookServer], bool], seconds: float = 30.0) -> None:
        """Wait until ``is_enough``, which is asked after each arrival."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not is_enough(self):
                left = deadline - time.monotonic()
                assert left > 0, f"after {seconds} s only {len(self.arrivals)} arrivals: {self.arrivals}"
                self._changed.wait(left)

    async def arrived(self, count: int) -> list[Arrival]:
        """Wait until ``count`` requests have arrived, and return all."""
        await asyncio.to_thread(self.wait_for, lambda server: len(server.arrivals) >= count)
        return list(self.arrivals)

    async def took(self, count: int) -> list[dict[str, Any]]:
        """Wait until ``count`` different deliveries have been taken, and return them all."""
        await asyncio.to_thread(self.wait_for, lambda server: len(server.taken) >= count)
        return self.taken
