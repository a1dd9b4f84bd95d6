"""A request's body, read and unpacked within bounds: bytes, seconds, and memory of all requests together."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from telemetry_bus.gateway.ingest_errors import BodyLate, BodyTooLarge, NoRoom, UnknownBody, UnreadableBody
from telemetry_bus.gateway.room import Room

BODY_SECONDS = 30.0
"""8 MiB at 3 Mbit/s take 22 s."""
HELD_BYTES_MAX = 64 * 1024 * 1024
"""Of all requests: bodies as they arrive, and then their rows until these are durable. 50 shards of a Prometheus with
0.6 MiB each are half of that."""
RETRY_AFTER_SECONDS = 1
READERS_MAX = 2
"""Requests that are unpacked at once, each in a thread: that work holds the interpreter, so that more gain nothing."""


class Holding:
    """What one request holds of the room; given back when it ends, whatever happens."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    def grow(self, size: int) -> None:
        """Hold ``size`` bytes more. Raises :class:`NoRoom`."""
        if not self._room.take(size):
            raise NoRoom(RETRY_AFTER_SECONDS)
        self._bytes += size

    def change_to(self, size: int) -> None:
        """Hold ``size`` bytes instead of what was held. Raises :class:`NoRoom`."""
        self.give_back()
        self.grow(size)

    def give_back(self) -> None:
        """Hold nothing."""
        self._room.give_back(self._bytes)
        self._bytes = 0


@asynccontextmanager
async def holding(room: Room) -> AsyncIterator[Holding]:
    """Hold some of ``room`` while a request is served."""
    held = Holding(room)
    try:
        yield held
    finally:
        held.give_back()


@dataclass(frozen=True, slots=True)
class Bound:
    """The most bytes that a body may have, packed or not, and what to do about more."""

    bytes_max: int
    hint: str = "Send it in several requests."

    def exceeded(self, found: str) -> BodyTooLarge:
        """What to raise."""
        return BodyTooLarge(found, self.bytes_max, self.hint)


async def read_body(request: Request, held: Holding, bound: Bound, seconds: float = BODY_SECONDS) -> bytes:
    """The body as it was sent. Raises :class:`BodyTooLarge`, :class:`BodyLate` and :class:`NoRoom`."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > bound.bytes_max:
        raise bound.exceeded(f"{declared[:20]} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > bound.bytes_max:
                    raise bound.exceeded(f"more than {bound.bytes_max} bytes")
                held.grow(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise BodyLate(seconds) from error
    return bytes(body)


def media_type(request: Request) -> str:
    """The content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unpacker(request: Request, allowed: dict[str, Callable[[bytes], bytes]]) -> Callable[[bytes], bytes]:
    """What takes off the body's encoding. Raises :class:`UnknownBody` for one that is not ``allowed``."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if (unpack := allowed.get(encoding)) is None:
        raise UnknownBody("Content-Encoding", " or ".join(sorted(allowed)), encoding)
    return unpack


def gunzip(bound: Bound) -> Callable[[bytes], bytes]:
    """Takes gzip off; never makes more than the bound and a byte."""

    def unpack(body: bytes) -> bytes:
        found = zlib.decompressobj(wbits=31)
        try:
            data = found.decompress(body, bound.bytes_max + 1)
        except zlib.error as error:
            raise UnreadableBody(f"the body: expected gzip, found what is none: {error}") from error
        if len(data) > bound.bytes_max:
            raise bound.exceeded(f"more than {bound.bytes_max} bytes once unpacked")
        if not found.eof:
            raise UnreadableBody("the body: expected a whole gzip stream, found one that was cut short")
        if found.unused_data:
            raise UnreadableBody("the body: expected one gzip stream, found something behind it")
        return data

    return unpack


def identity(body: bytes) -> bytes:
    """A body without an encoding."""
    return body
