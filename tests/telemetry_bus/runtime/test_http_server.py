"""The web server's connections: a place is not held by whoever asks for nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from telemetry_bus.runtime import http_server
from telemetry_bus.runtime.http_server import bind, running

GUARD_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""
PAUSE_SECONDS = 0.5
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def slow(scope: dict[str, Any], _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Answer in two pieces with a pause between them."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
        await asyncio.sleep(PAUSE_SECONDS)
        await send({"type": "http.response.body", "body": b"end"})


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Start and stop at once; everything else is ``slow``."""
    if scope["type"] != "lifespan":
        return await slow(scope, receive, send)
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})
    return None


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(REQUEST[:20], id="half-a-request"),
        pytest.param(REQUEST + REQUEST[:20], id="half-a-request-behind-a-whole-one"),
    ],
)
async def test_who_does_not_ask_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A stranger's connection costs a place for seconds, whatever he begins and does not end."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS_MAX", 0.1)
    listener = bind("127.0.0.1", 0)
    async with running(lifespan, listener), asyncio.timeout(GUARD_SECONDS):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(sent)
        told = await reader.read()
        writer.close()
    assert (b"end" in told) is sent.startswith(REQUEST)


async def test_an_answer_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is being answered has asked: a stream goes on, and the connection takes another request."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS_MAX", PAUSE_SECONDS / 5)
    listener = bind("127.0.0.1", 0)
    async with running(lifespan, listener), asyncio.timeout(GUARD_SECONDS):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        for _ in range(2):
            writer.write(REQUEST)
            assert b"begin" in await reader.readuntil(b"begin")
            assert b"end" in await reader.readuntil(b"0\r\n\r\n")
        writer.close()
