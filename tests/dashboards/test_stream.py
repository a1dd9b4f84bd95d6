"""The stream and the frames: what moves, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from dashboards.arrow_stream import ArrowMessages
from dashboards.stream import Broadcast
from telemetry_bus.fanout import ReadersFull
from telemetry_bus.frames import FrameMaker
from telemetry_bus.schemas import SCHEMAS
from telemetry_bus.topics import Topic
from tests.dashboards.world import World, events, incident, world


async def test_a_client_gets_a_snapshot_and_then_an_incident_as_it_happens(here: World) -> None:
    """The stream begins with everything that is known, and carries an incident without being asked."""
    async with here.http.stream("GET", "/api/v1/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events(answer)
        first = [await anext(stream) for _ in range(4)]
        assert [name for name, _ in first] == ["health", "fleet", "jobs", "incidents"]
        here.incidents.put(incident("i-9"))
        async for name, data in stream:
            if name == "incidents":
                assert [one["id"] for one in data["incidents"]] == ["i-9"]
                assert data["open"]["page"] == 1
                break
    await nobody_left(here)


async def test_a_curve_grows_by_what_is_new(here: World) -> None:
    """A curve event carries the steps since the one before, and no older ones; a NaN is a string."""
    maker = FrameMaker("sdk")
    await here.steps(maker, loss=[1.0] * 50)
    async with here.http.stream("GET", "/api/v1/stream") as answer:
        stream = events(answer)
        for _ in range(4):
            await anext(stream)
        await here.steps(maker, first=50, loss=[1.0])
        await newest_curve(stream, step=50)
        await here.steps(maker, first=51, loss=[float("nan"), 2.0])
        data = await newest_curve(stream, step=52)
        assert data["curves"][0]["step"] == [51, 52]
        assert data["curves"][0]["loss"] == ["NaN", 2.0]
        detail = (await here.http.get("/api/v1/jobs/run")).json()
        assert detail["curve"]["version"] >= data["version"]
        assert len(detail["curve"]["step"]) == 53


async def test_gpus_that_come_bring_a_new_layout(here: World) -> None:
    """Cells keep their places until a GPU comes; then the layout is sent with the numbers."""
    maker = FrameMaker("node-1")
    async with here.http.stream("GET", "/api/v1/stream") as answer:
        stream = events(answer)
        for _ in range(4):
            await anext(stream)
        await here.gpus(maker, power_watts=[300.0, 400.0])
        async for name, data in stream:
            if name == "fleet" and data["gpus"] == 2:
                assert data["layout"]["nodes"] == ["node-1"]
                break


async def test_all_clients_are_sent_the_very_same_bytes() -> None:
    """An event is encoded once; the bytes of fifty clients are one object."""
    broadcast = Broadcast()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await entered(stack, broadcast) for _ in range(50)]
        broadcast.send("health", {"lag_seconds": float("nan")})
        got = [await anext(stream) for stream in streams]
    assert len({id(payload) for payload in got}) == 1
    assert got[0] == b'id: 0\nevent: health\ndata: {"lag_seconds":"NaN"}\n\n'
    assert broadcast.clients == 0


async def test_a_slow_client_is_moved_forward_and_given_everything_anew() -> None:
    """Who falls behind the ring is told how many events he missed, and gets a snapshot instead of them."""
    broadcast = Broadcast(ring_bytes=1_000)
    async with contextlib.AsyncExitStack() as stack:
        slow = await entered(stack, broadcast)
        for number in range(100):
            broadcast.send("health", {"number": number})
        told = await anext(slow)
        broadcast.send("health", {"number": "next"})
        assert b'"next"' in await anext(slow)
    assert told.startswith(b"event: skipped\n")
    assert told.endswith(b"snapshot")
    assert broadcast.skipped > 0


async def test_a_channel_is_sent_to_those_who_look_at_it() -> None:
    """The heatmap of another metric costs a client nothing."""
    broadcast = Broadcast()
    async with contextlib.AsyncExitStack() as stack:
        looking, other = [await entered(stack, broadcast, name) for name in ("power", "heat")]
        assert broadcast.watched == {"power": 1, "heat": 1}
        broadcast.send_together([("heat", {"cells": 1})], "power")
        broadcast.send_together([("jobs", {}), ("fleet", {})])
        assert b"cells" in await anext(looking)
        assert (await anext(looking)).count(b"event: ") == 2
        assert b"jobs" in await anext(other)
    assert broadcast.watched == {}


async def test_the_heatmap_that_is_asked_for_comes_with_the_snapshot_and_each_second(here: World) -> None:
    """Cells belong to the layout that was sent."""
    await here.gpus(FrameMaker("node-1"), power_watts=[300.0, 400.0])
    async with here.http.stream("GET", "/api/v1/stream?heat=power_watts:worst") as answer:
        stream = events(answer)
        (_, (_, fleet), (name, cells), *_) = [await anext(stream) for _ in range(5)]
        assert (name, cells["metric"], cells["bits"]) == ("heat", "power_watts", 16)
        assert cells["revision"] == fleet["layout"]["revision"]
        while (name := (await anext(stream))[0]) != "heat":
            pass
    assert (await here.http.get("/api/v1/stream?heat=nonsense")).status_code == 422


async def test_one_client_too_many_is_refused() -> None:
    """Clients are bounded."""
    broadcast = Broadcast(clients_max=1)
    async with contextlib.AsyncExitStack() as stack:
        await entered(stack, broadcast)
        with pytest.raises(ReadersFull):
            broadcast.room()


async def test_the_frames_of_a_topic_are_one_arrow_stream_that_can_be_resumed(here: World) -> None:
    """pyarrow reads the answer; going on at a batch's `cursor` repeats and leaves out nothing."""
    maker = FrameMaker("node-1")
    for watts in (1.0, float("nan"), 3.0):
        await here.gpus(maker, power_watts=[watts, None])
    whole = await frames(here.http, "")
    assert [len(batch) for batch, _ in whole] == [2, 2, 2]
    assert whole[0][0].schema == SCHEMAS["gpu/1"]
    assert str(whole[1][0].column("power_watts").to_pylist()) == "[nan, None]"
    rest = await frames(here.http, f"?offset={whole[0][1]['cursor']}")
    assert [told["offset"] for _, told in rest] == [told["offset"] for _, told in whole[1:]]
    assert len(await frames(here.http, "?limit=1")) == 1


async def test_a_batch_is_encoded_once_for_all_readers(here: World) -> None:
    """Ten readers of the same frames are sent the same messages, made once each; all are valid streams."""
    maker = FrameMaker("node-1")
    for watts in (1.0, 2.0, 3.0):
        await here.gpus(maker, power_watts=[watts])
    answers = await asyncio.gather(*(frames(here.http, "") for _ in range(10)))
    assert [len(answer) for answer in answers] == [3] * 10
    assert here.services.arrow.made == 3
    assert here.services.arrow.sent == 30


async def test_a_frame_that_cannot_be_read_is_told_with_the_next_one(here: World) -> None:
    """The stream goes on behind it, and says how many were left out."""
    await here.publish_payload(Topic.GPU, b"rubbish that is long enough to be looked at")
    await here.gpus(FrameMaker("node-1"), power_watts=[1.0])
    for _ in range(2):
        ((_, told),) = await frames(here.http, "")
        assert told["refused"] == "1"
        assert told["cursor"] == told["next_offset"]


async def test_messages_are_kept_up_to_a_bound_and_made_again_beyond_it(here: World) -> None:
    """What has left the cache is made anew, the same."""
    maker = FrameMaker("node-1")
    for watts in (1.0, 2.0, 3.0):
        await here.gpus(maker, power_watts=[watts])
    small = ArrowMessages(bytes_max=1)
    answers = []
    for _ in range(2):
        reader = here.services.fan.oldest(Topic.GPU)
        parts = [part async for part in small.stream(reader, Topic.GPU, "gpu/1", until=3, limit=None)]
        answers.append(b"".join(parts))
    assert small.made == 6
    assert answers[0] == answers[1]


async def test_an_empty_topic_is_an_empty_arrow_stream(here: World) -> None:
    """A topic without frames gives the schema and no batch."""
    assert await frames(here.http, "") == []


async def test_a_followed_topic_gives_a_frame_when_it_comes(here: World) -> None:
    """With `follow` the answer stays open, and ends when the client leaves."""
    await here.gpus(FrameMaker("node-1"), power_watts=[1.0])
    async with here.http.stream("GET", "/api/v1/frames/telemetry.gpu?follow=true&limit=2") as answer:
        reading = asyncio.create_task(answer.aread())
        await here.gpus(FrameMaker("node-2"), power_watts=[2.0])
        with pa.ipc.open_stream(await reading) as stream:
            assert len(list(stream)) == 2


async def test_an_offset_that_is_gone_is_a_problem_with_the_earliest(tmp_path: Path) -> None:
    """410 says where reading can begin."""
    async with world(tmp_path, ring_bytes=3_000) as here:
        maker = FrameMaker("node-1")
        for _ in range(10):
            await here.gpus(maker, power_watts=[1.0])
        answer = await here.http.get("/api/v1/frames/telemetry.gpu?offset=0")
        assert answer.status_code == 410
        earliest = answer.json()["earliest"]
        assert (await here.http.get(f"/api/v1/frames/telemetry.gpu?offset={earliest}")).status_code == 200


async def test_a_client_that_leaves_gives_its_place_back(here: World) -> None:
    """Readers and clients are counted down when the connection closes, not when the garbage is collected."""
    async with here.http.stream("GET", "/api/v1/frames/telemetry.gpu?follow=true") as answer:
        assert answer.status_code == 200
        while here.services.fan.readers == len(Topic):
            await asyncio.sleep(0.005)
    await nobody_left(here)


async def test_the_server_stops_while_clients_listen(tmp_path: Path) -> None:
    """An open stream does not keep the server from stopping: it ends cleanly."""
    async with httpx.AsyncClient(timeout=20) as http:
        async with world(tmp_path) as here:
            context = http.stream("GET", f"{here.url}/api/v1/stream")
            answer = await context.__aenter__()
            reading = asyncio.create_task(answer.aread())
        assert b"event: fleet" in await reading
        await context.__aexit__(None, None, None)


async def test_what_the_store_cannot_tell_is_said_and_what_was_known_stays(here: World) -> None:
    """While the store is away the page keeps its incidents and says so; afterwards it catches up."""
    here.incidents.put(incident("i-1"))
    await until(lambda: here.services.feed.revision == 1)
    here.incidents.away = True
    await until(lambda: here.services.feed.failure is not None)
    assert here.services.live.health_event(0.0)["store"] == "unavailable"
    assert [one["id"] for one in here.services.feed.newest()] == ["i-1"]
    here.incidents.put(incident("i-2"))
    here.incidents.away = False
    await until(lambda: here.services.feed.revision == 2)


async def frames(http: httpx.AsyncClient, query: str) -> list[tuple[pa.RecordBatch, dict[str, str]]]:
    """The batches of telemetry.gpu with what each one's metadata says."""
    answer = await http.get(f"/api/v1/frames/telemetry.gpu{query}")
    assert answer.status_code == 200
    found = []
    with pa.ipc.open_stream(answer.content) as reader, contextlib.suppress(StopIteration):
        while True:
            batch = reader.read_next_batch_with_custom_metadata()
            metadata = {key.decode(): value.decode() for key, value in dict(batch.custom_metadata).items()}
            found.append((batch.batch, metadata))
    return found


async def newest_curve(stream: AsyncIterator[tuple[str, dict[str, Any]]], step: int) -> dict[str, Any]:
    """The curve event that brings a step."""
    async for name, data in stream:
        if name == "curve" and data["curves"][0]["step"][-1] == step:
            return data
    raise AssertionError("the stream has ended")


async def entered(stack: contextlib.AsyncExitStack, broadcast: Broadcast, channel: str = "") -> AsyncIterator[bytes]:
    """One more client, which has had its snapshot."""
    stream = await stack.enter_async_context(contextlib.aclosing(broadcast.events(lambda _: b"snapshot", channel)))
    assert await anext(stream) == b"snapshot"
    return stream


async def nobody_left(here: World) -> None:
    """Wait until only the page's own readers are left."""
    await until(lambda: here.services.broadcast.clients == 0 and here.services.fan.readers == len(Topic))


async def until(condition: object) -> None:
    """Wait for a condition; the test's own time limit is the limit."""
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0.005)
