"""The pause switch of profiling, asked over the real socket."""

import asyncio
import json
from pathlib import Path

import pytest

from collectors.profiling import PAUSE_SECONDS, PAUSE_SECONDS_MAX, ProfilingSwitch
from collectors.training import TrainingListener
from telemetry_bus import Frame, Topic
from telemetry_bus.runtime.clock import ManualClock


async def ask(path: Path, line: str) -> tuple[int, dict[str, object]]:
    """Status and body of one request on the socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), json.loads(body)


async def publish(topic: Topic, frame: Frame) -> None:
    """Take nothing."""
    raise AssertionError(f"nobody sends rows here: {topic} {frame}")


async def test_whoever_reaches_the_jobs_socket_may_pause_profiling_and_resume_it(tmp_path: Path) -> None:
    """A user with Nsight is not root; the socket of the jobs is his."""
    switch, clock = ProfilingSwitch(), ManualClock()
    path = tmp_path / "jobs.sock"
    async with TrainingListener(publish, clock, node="node-1", unix_path=path, profiling=switch):
        assert await ask(path, "GET /v1/profiling") == (200, {"paused": False, "seconds_left": 0.0})
        assert await ask(path, "POST /v1/profiling?pause_seconds=60") == (200, {"paused": True, "seconds_left": 60.0})
        assert switch.paused(clock.now())
        assert await ask(path, "POST /v1/profiling?pause_seconds=0") == (200, {"paused": False, "seconds_left": 0.0})


def test_a_pause_ends_by_itself() -> None:
    """A forgotten pause is not for ever."""
    switch = ProfilingSwitch()
    switch.answer(b"POST /v1/profiling HTTP/1.1\r\n\r\n", 1000.0)
    assert switch.paused(1000.0 + PAUSE_SECONDS - 1.0)
    assert not switch.paused(1000.0 + PAUSE_SECONDS)


@pytest.mark.parametrize("given", ["-1", "nan", "inf", "x", "", str(PAUSE_SECONDS_MAX + 1)])
def test_a_pause_that_cannot_be_is_refused(given: str) -> None:
    """The answer says what is allowed, and nothing changes."""
    switch = ProfilingSwitch()
    answer = switch.answer(f"POST /v1/profiling?pause_seconds={given}&x=1 HTTP/1.1\r\n\r\n".encode(), 1000.0)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 422" if given else b"HTTP/1.1 200")
    assert switch.paused(1000.0) is (given == "")


@pytest.mark.parametrize(
    "head", [b"GET /v1/train HTTP/1.1\r\n\r\n", b"\xff\xfe", b"", b"GET http://[ HTTP/1.1\r\n\r\n"]
)
def test_other_requests_are_not_its_own(head: bytes) -> None:
    """The SDK's handshake, and rubbish, go on to who answers them."""
    assert ProfilingSwitch().answer(head, 0.0) is None
