"""Bodies that do not end, and many at once: what is held is bounded and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from telemetry_bus.gateway.bodies import Bound, holding, read_body
from telemetry_bus.gateway.ingest_errors import BodyLate, NoRoom
from telemetry_bus.gateway.room import Room


async def slow_body(never: bool) -> AsyncIterator[dict[str, Any]]:
    """A client's messages: some bytes, and then nothing more."""

    yield {"type": "http.request", "body": b"x" * 100, "more_body": True}
    if never:
        await asyncio.Event().wait()
    yield {"type": "http.request", "body": b"", "more_body": False}


def request(messages: AsyncIterator[dict[str, Any]]) -> Request:
    """A request whose body comes in these messages."""
    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, lambda: anext(messages))


async def test_a_body_that_does_not_end_is_late_and_gives_its_room_back() -> None:
    """A client that stops in the middle of its body is told so, and holds nothing afterwards."""
    room = Room(1_000)
    with pytest.raises(BodyLate, match="expected its last byte within"):
        async with holding(room) as held:
            await read_body(request(slow_body(never=True)), held, Bound(1_000), seconds=0.01)
    assert room.used == 0


async def test_bodies_share_one_room() -> None:
    """Bytes of other requests leave less for this one, and what it held is free again."""
    room = Room(150)
    assert room.take(60)
    with pytest.raises(NoRoom):
        async with holding(room) as held:
            await read_body(request(slow_body(never=False)), held, Bound(1_000))
    assert room.used == 60
