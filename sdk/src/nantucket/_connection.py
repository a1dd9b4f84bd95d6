"""One connection to the collector: where it is, the handshake, and bytes without waiting."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nantucket import _clock
from nantucket._wire import HEAD_BYTES_MAX, Inbox, WireError

SYSTEM_SOCKET = "/run/nantucket/collector.sock"
UNIX_PATH_BYTES_MAX = 107
"""Linux's ``sun_path`` has 108 bytes with its final zero."""
CONNECT_SECONDS = 1.0
"""On one machine a connection takes microseconds; a collector that does not answer within this is tried again."""
HANDSHAKE_SECONDS = 2.0
READ_BYTES = 64 * 1024


class BadUrl(Exception):
    """The URL cannot be used; the message says why and never shows a user name or password."""


class Refused(Exception):
    """The collector answered the handshake with an error."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the collector refused the connection ({status}): {detail}")
        self.status = status
        self.detail = detail


class Address(NamedTuple):
    """Where the collector listens: a socket's path, or a port of this machine."""

    path: str | None
    host: str
    port: int

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path is not None else f"http://{self.host}:{self.port}"


def default_url() -> str:
    """Where the collector of this machine listens if nobody says.

    The first of these that exists: ``/run/nantucket/collector.sock`` (a system service), then
    ``$XDG_RUNTIME_DIR/nantucket/collector.sock``, then ``~/.local/state/nantucket/collector.sock`` (``nantucket up``
    of this user). If none exists: the second where ``XDG_RUNTIME_DIR`` is set, else the third. It is asked at every
    attempt to connect, so that a collector may start after the job.
    """
    candidates = []
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.append(Path(os.environ["XDG_RUNTIME_DIR"], "nantucket", "collector.sock"))
    candidates.append(Path(os.path.expanduser("~"), ".local", "state", "nantucket", "collector.sock"))
    for path in (Path(SYSTEM_SOCKET), *candidates):
        if path.exists():
            return f"unix://{path}"
    return f"unix://{candidates[0]}"


def address_of(url: str) -> Address:
    """The address in ``url``. Raises :class:`BadUrl`."""
    expected = "expected unix:///PATH/collector.sock or http://127.0.0.1:PORT"
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as error:
        raise BadUrl(f"the collector's URL cannot be read: {expected}") from error
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise BadUrl(f"{expected}, found a unix URL without an absolute path")
        if len(os.fsencode(parts.path)) > UNIX_PATH_BYTES_MAX:
            raise BadUrl(f"the socket's path has {len(os.fsencode(parts.path))} bytes; at most {UNIX_PATH_BYTES_MAX}")
        return Address(parts.path, "localhost", 0)
    if parts.scheme != "http" or user is not None or not host or not port:
        raise BadUrl(f"{expected}, found another kind of URL (scheme {parts.scheme[:20]!a})")
    if host not in ("localhost", "::1") and not (host.startswith("127.") and host.replace(".", "").isdigit()):
        raise BadUrl(f"{expected}: the token crosses the port in clear text, so only this machine is spoken to")
    return Address(None, host, port)


class Connection:
    """A connection after its handshake. ``send`` and ``receive`` never wait."""

    def __init__(self, link: socket.socket, already: bytes) -> None:
        self._socket = link
        self._out = bytearray()
        self._inbox = Inbox()
        self._first = self._inbox.feed(already)
        link.setblocking(False)

    def send(self, data: bytes) -> None:
        """Queue ``data`` and write what the socket takes now. Raises ``OSError``."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now. Raises ``OSError``."""
        while self._out:
            try:
                written = self._socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            del self._out[:written]

    @property
    def unsent(self) -> bool:
        """Whether bytes still wait for the socket."""
        return bool(self._out)

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come. Raises ``OSError`` when the connection is gone, :class:`WireError`."""
        messages, self._first = self._first, []
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return messages
            if not data:
                if messages:
                    return messages  # the next call finds the end again
                raise ConnectionResetError("the collector closed the connection")
            messages += self._inbox.feed(data)

    def close(self) -> None:
        """Close this process's end. A copy that a fork left elsewhere stays as it is."""
        self._socket.close()


def connect(address: Address, request: bytes) -> Connection:
    """Connect and shake hands. Raises ``OSError``, :class:`Refused` or :class:`WireError`; waits at most about 3 s."""
    link = _open(address)
    try:
        deadline = _clock.monotonic() + HANDSHAKE_SECONDS
        link.settimeout(HANDSHAKE_SECONDS)
        link.sendall(request)
        head, rest = _read_head(link, deadline)
        status, headers = _parse_head(head)
        if status != 101:
            raise Refused(status, _problem(link, headers, rest))
        return Connection(link, rest)
    except BaseException:
        link.close()
        raise


def _open(address: Address) -> socket.socket:
    if address.path is None:
        link = socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(CONNECT_SECONDS)
        link.connect(address.path)
    except BaseException:
        link.close()
        raise
    return link


def _read_head(link: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        left = deadline - _clock.monotonic()
        if left <= 0:
            raise socket.timeout(f"no answer to the handshake within {HANDSHAKE_SECONDS} s")
        if len(data) > HEAD_BYTES_MAX:
            raise WireError(
                f"an answer of more than {HEAD_BYTES_MAX} bytes to the handshake: no collector listens there"
            )
        link.settimeout(left)
        found = link.recv(READ_BYTES)
        if not found:
            raise ConnectionResetError("the collector closed the connection during the handshake")
        data += found
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    return head, rest


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise WireError("the answer to the handshake is not HTTP/1.1: no collector listens there")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


def _problem(link: socket.socket, headers: dict[str, str], rest: bytes) -> str:
    """The ``detail`` of a problem+json answer, or the start of whatever it is."""
    length = headers.get("content-length", "")
    wanted = min(int(length), HEAD_BYTES_MAX) if length.isdigit() and len(length) < 10 else 0
    body = bytearray(rest)
    while len(body) < wanted:
        try:
            found = link.recv(READ_BYTES)
        except OSError:
            break  # the status alone is an answer; the text is only for the log
        if not found:
            break
        body += found
    text: str | object = bytes(body).decode("utf-8", "replace")
    try:
        parsed = json.loads(str(text))
        text = parsed.get("detail", text) if isinstance(parsed, dict) else text
    except (ValueError, RecursionError):
        pass  # another server's page: its first characters are shown as they are
    return ascii(str(text)[:300])[1:-1]
