"""The client's side of the wire, as docs/wire.md describes it: bytes in, bytes out, no I/O."""

from __future__ import annotations

import json
import struct
from typing import Any

PROTOCOL = "nantucket-sdk/1"
VERSION = 1
PATH = "/v1/sdk"
HEAD_BYTES_MAX = 8 * 1024
"""The collector's answer to the handshake: a status line and a handful of headers."""
ANSWER_BYTES_MAX = 64 * 1024
"""An acknowledgement has 40 bytes, a refusal's text 1 KiB."""
MESSAGE_ROWS_MAX = 256
"""Rows in a message: two and a half seconds of 100 rows/s, so that a wait of 30 s is 12 messages of a stream."""
MESSAGE_BYTES_MAX = 96 * 1024
"""Bytes of rows in a message. The longest row (a parameter's name of 512 escaped characters) has 8 KiB and may be the
last one: together well under the 256 KiB that a message may have on the wire."""

_LENGTH = struct.Struct("<I")
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def handshake(host: str, job: str, token: str | None) -> bytes:
    """The HTTP request that turns the connection into a stream of messages."""
    lines = [
        f"GET {PATH} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        f"Upgrade: {PROTOCOL}",
        f"Nantucket-Job: {job}",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def row_text(row: dict[str, Any]) -> bytes:
    """One row as JSON. Non-finite numbers must be their strings already."""
    return _encode(row).encode("ascii")


def message(body: dict[str, Any]) -> bytes:
    """A message: its length, then JSON."""
    text = _encode(body).encode("ascii")
    return _LENGTH.pack(len(text)) + text


def rows_message(stream: str, seq: int, sent: float, rows: list[bytes]) -> bytes:
    """A ``rows`` message from rows that are JSON already: they are encoded once and may be sent many times."""
    head = f'{{"type":"rows","stream":"{stream}","seq":{seq},"sent":{sent!r},"rows":['.encode("ascii")
    text = head + b",".join(rows) + b"]}"
    return _LENGTH.pack(len(text)) + text


class WireError(Exception):
    """The collector said something that is not in the protocol."""


class Inbox:
    """Takes bytes as they come and gives the collector's messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete now. Raises :class:`WireError`."""
        self._bytes += data
        found = []
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if length > ANSWER_BYTES_MAX:
                raise WireError(f"a message of {length} bytes from the collector; expected at most {ANSWER_BYTES_MAX}")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            found.append(_decode(bytes(self._bytes[_LENGTH.size : end])))
            del self._bytes[:end]
        return found


def _decode(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the collector sent what is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise WireError(f"the collector sent {type(body).__name__}; expected a JSON object")
    return body
