"""Strangers at the gateway's doors: what is wrong is refused with its reason and counted, and the others go on."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from telemetry_bus import FrameFault, FrameMaker, OutletOptions, Topic
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.gateway import (
    Gateway,
    GatewayOptions,
    GatewayOutlet,
    LinkServer,
    ListenOptions,
    MergeOptions,
    server_link,
    wire,
)
from telemetry_bus.gateway import server as server_module
from telemetry_bus.gateway.http import make_gateway_app, serve_gateway_app
from telemetry_bus.gateway.splitter import Splitter, Whole
from telemetry_bus.gateway.wire import Answered, Kind, LinkFault
from telemetry_bus.runtime.secret import Secret
from tests.telemetry_bus.gateway.scene import (
    CLOCK,
    WAIT_SECONDS,
    FarEnd,
    a_gateway,
    event,
    finding,
    gpu,
    listening,
    until,
)

HELLO = wire.encode_message(wire.Hello(wire.VERSION, "", "stranger", ""))
TOKEN = Secret("the-token")
FRAME = "application/vnd.nantucket.frame"


@pytest.fixture
def far_end() -> FarEnd:
    """Return what stands behind the gateway."""
    return FarEnd()


@pytest.fixture
async def gateway(far_end: FarEnd) -> AsyncIterator[Gateway]:
    """Return a gateway that passes on what comes."""
    async with a_gateway(far_end, GatewayOptions(merging=MergeOptions(seconds=0))) as gateway:
        yield gateway


@pytest.fixture
async def server(gateway: Gateway) -> AsyncIterator[LinkServer]:
    """Return its door for links."""
    async with listening(gateway) as server:
        yield server


async def told(server: LinkServer, *pieces: bytes, wanted: int | None = None, end: bool = False) -> list[wire.Message]:
    """What a stranger is told who sends `pieces` (and says that this is the `end`): so many messages, or all until the
    gateway hangs up."""
    splitter, found = Splitter(frozenset(Kind), lambda _: True), list[wire.Message]()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            if end:
                writer.write_eof()
            while wanted is None or len(found) < wanted:
                if not (data := await reader.read(65_536)):
                    break
                for part in splitter.feed(data):
                    assert isinstance(part, Whole)
                    found.append(wire.decode_message(part.kind, part.body))
    except OSError:
        pass
    finally:
        writer.close()
    return found


async def others_go_on(server: LinkServer, far_end: FarEnd) -> None:
    """A node with honest frames gets through."""
    maker = FrameMaker("n1/gpu")
    async with GatewayOutlet(server.url, CLOCK, OutletOptions(node="n1")) as outlet:
        await outlet.publish(Topic.GPU, [gpu(maker)], "n1")
    assert maker.boot in {run.boot for run in far_end.runs(Topic.GPU)}


def put(id_: int, payload: bytes, topic: str = "telemetry.gpu") -> bytes:
    """A frame on the wire."""
    return wire.encode_message(wire.Put(id_, topic, "", payload))


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        pytest.param([b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"], LinkFault.NOT_A_LINK, id="http"),
        pytest.param([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], LinkFault.NOT_A_LINK, id="tls"),
        pytest.param([b"\xff" * 4_096], LinkFault.NOT_A_LINK, id="ones"),
        pytest.param([put(1, b"")], LinkFault.NOT_A_LINK, id="frame-before-hello"),
        pytest.param([struct.pack("<IB", 4, 1) + b"NTG"], LinkFault.MALFORMED, id="half-a-hello"),
        pytest.param([HELLO[:5] + b"XXXX" + HELLO[9:]], LinkFault.NOT_A_LINK, id="another-magic"),
        pytest.param([wire.encode_message(wire.Hello(99, "", "n", ""))], LinkFault.VERSION, id="another-version"),
        pytest.param([HELLO, HELLO], LinkFault.UNEXPECTED, id="two-hellos"),
        pytest.param([HELLO, wire.encode_message(wire.Ack((1,)))], LinkFault.UNEXPECTED, id="an-ack-from-below"),
        pytest.param([HELLO, struct.pack("<IB", 2**31, 4)], LinkFault.OVERSIZED, id="two-gigabytes"),
        pytest.param([HELLO, struct.pack("<IB", 3, 4) + b"xx"], LinkFault.MALFORMED, id="a-frame-too-short-for-its-id"),
        pytest.param([HELLO, struct.pack("<IB", 2, 10) + b"x"], LinkFault.MALFORMED, id="a-ping-with-a-body"),
    ],
)
async def test_bytes_that_are_no_link_end_the_connection_with_a_reason(
    server: LinkServer, gateway: Gateway, far_end: FarEnd, pieces: list[bytes], fault: LinkFault
) -> None:
    """The stranger is told why, it is counted, and others go on."""
    answers = await told(server, *pieces)
    refused = answers[-1]
    assert isinstance(refused, wire.Refused)
    assert (refused.fault, gateway.counters.links_ended[fault]) == (fault, 1)
    await others_go_on(server, far_end)


async def test_random_bytes_never_disturb_the_gateway(server: LinkServer, far_end: FarEnd) -> None:
    """Whatever comes, with a HELLO before it or without one: others go on."""
    seed = random.randrange(1 << 32)
    sys.stdout.write(f"bytes of random.Random({seed})\n")
    dice = random.Random(seed)
    for _ in range(100):
        garbage = dice.randbytes(dice.choice((1, 5, 13, 100, 10_000)))
        kind = struct.pack("<IB", dice.randrange(1, 200), dice.randrange(1, 12))
        pieces = [HELLO] * (dice.random() < 0.7) + [kind] * (dice.random() < 0.5) + [garbage, put(1, b"")]
        await told(server, *pieces, end=True)
    await others_go_on(server, far_end)


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        pytest.param("telemetry.gpu", os.urandom(500), FrameFault.NOT_A_FRAME, id="garbage"),
        pytest.param("telemetry.train", gpu(FrameMaker("n/gpu")), FrameFault.WRONG_TOPIC, id="another-schema"),
        pytest.param("findings", finding(), FrameFault.FOREIGN, id="a-finding"),
        pytest.param("telemetry.gpu", bytes(FRAME_BYTES_MAX + 8), FrameFault.TOO_LARGE, id="larger-than-a-frame"),
    ],
)
async def test_a_bad_frame_is_refused_by_its_id_and_the_link_lives_on(
    server: LinkServer, gateway: Gateway, topic: str, payload: bytes, reason: FrameFault
) -> None:
    """One bad frame among good ones costs its sender that frame only."""
    good = gpu(FrameMaker("n1/gpu"))
    answers = await told(server, HELLO, put(1, good), put(2, payload, topic), put(3, good), wanted=4)
    (nack,) = [answer for answer in answers if isinstance(answer, wire.Nack)]
    assert (nack.id, nack.reason, nack.retry_after != nack.retry_after) == (2, reason, True)
    acknowledged = [id_ for answer in answers if isinstance(answer, wire.Ack) for id_ in answer.ids]
    assert sorted(acknowledged) == [1, 3]
    assert gateway.counters.refused[reason] == 1


async def test_a_replayed_frame_passes_to_the_readers_which_drop_it(server: LinkServer, far_end: FarEnd) -> None:
    """The gateway keeps nothing, so it cannot know what was here before: its manifest says it, and readers look."""
    frame = gpu(FrameMaker("n1/gpu"))
    await told(server, HELLO, put(1, frame), put(2, frame), wanted=3)
    assert [(run.source, run.seq) for run in far_end.runs(Topic.GPU)] == [("n1/gpu", 0)] * 2


async def test_an_id_that_is_under_way_cannot_be_used_again(
    server: LinkServer, gateway: Gateway, far_end: FarEnd
) -> None:
    """An answer belongs to one frame."""
    far_end.answers.clear()
    frame = gpu(FrameMaker("n1/gpu"))
    answers = await told(server, HELLO, put(1, frame), put(1, frame))
    assert isinstance(answers[-1], wire.Refused)
    assert gateway.counters.links_ended[LinkFault.UNEXPECTED] == 1
    far_end.answers.set()
    await until(lambda: gateway.room.used == 0)


async def test_one_link_cannot_take_all_the_room(server: LinkServer, gateway: Gateway, far_end: FarEnd) -> None:
    """Who does not wait for answers is put off beyond its share; a report of it is heard, and others go on."""
    far_end.answers.clear()
    frame = gpu(FrameMaker("n1/gpu"), rows=32_768)
    count = server_link.LINK_BYTES_MAX // len(frame) + 2
    pieces = [put(number, frame) for number in range(count)]
    reporting = wire.encode_message(wire.ReportFinding(9_999, gpu(FrameMaker("n1/gpu"))))
    answers = await told(server, HELLO, *pieces, reporting, wanted=4)
    nacks = [answer for answer in answers if isinstance(answer, wire.Nack)]
    assert [nack.reason for nack in nacks] == [Answered.FULL, Answered.FULL, FrameFault.WRONG_TOPIC]
    far_end.answers.set()
    await others_go_on(server, far_end)


async def test_one_link_has_so_many_frames_under_way_however_small_they_are(
    server: LinkServer, gateway: Gateway, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small frame costs memory and a publish like any other: beyond the bound it is put off, and others go on."""
    monkeypatch.setattr(server_link, "LINK_FRAMES_MAX", 3)
    far_end.answers.clear()
    pieces = [put(number, gpu(FrameMaker(f"n{number}/gpu"), rows=1)) for number in range(5)]
    _, *nacks = await told(server, HELLO, *pieces, wanted=3)
    assert [(nack.id, nack.reason) for nack in nacks if isinstance(nack, wire.Nack)] == [
        (3, Answered.FULL),
        (4, Answered.FULL),
    ]
    far_end.answers.set()
    await others_go_on(server, far_end)
    await until(lambda: gateway.room.used == 0)


async def test_large_frames_that_begin_and_do_not_end_hold_bounded_room(
    gateway: Gateway, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beyond the room for frames that are coming in goes by, is refused by its id, and small ones pass."""
    monkeypatch.setattr(server_module, "COMING_IN_BYTES_MAX", 1024 * 1024)
    async with listening(gateway) as server:
        head = wire.put_head(1, "telemetry.gpu", "", 1_000_000)
        holders = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        for _, writer in holders:
            writer.write(HELLO + head + bytes(1_000))
        answers = [await asyncio.wait_for(reader.read(200), WAIT_SECONDS) for reader, _ in holders]
        refused = [reader for (reader, _), first in zip(holders, answers, strict=True) if b"\x06" in first[4:30]]
        await until(lambda: gateway.counters.put_off[Answered.FULL] == 2)
        assert server.all_links.used <= 1024 * 1024
        await others_go_on(server, far_end)
        for _, writer in holders:
            writer.close()
        await until(lambda: server.all_links.used == 0)
        assert len(refused) <= 2


@pytest.mark.parametrize("how", ["says-nothing", "half-a-hello", "silent-after-hello", "a-message-that-does-not-end"])
async def test_who_is_slow_or_half_open_is_hung_up_on(
    server: LinkServer, gateway: Gateway, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A place is not held by whoever does nothing with it."""
    for name in ("HELLO_SECONDS_MAX", "SILENT_SECONDS_MAX", "MESSAGE_SECONDS_MAX"):
        monkeypatch.setattr(server_link, name, 0.1)
    pieces = {
        "says-nothing": [],
        "half-a-hello": [HELLO[:10]],
        "silent-after-hello": [HELLO],
        "a-message-that-does-not-end": [HELLO, wire.put_head(1, "telemetry.gpu", "", 5_000)],
    }
    answers = await told(server, *pieces[how])
    assert isinstance(answers[-1], wire.Refused)
    assert answers[-1].fault == LinkFault.TIMEOUT
    assert gateway.counters.links_ended[LinkFault.TIMEOUT] == 1
    await until(lambda: gateway.counters.links_now == 0)


async def test_who_does_not_read_its_answers_is_hung_up_on(
    server: LinkServer, gateway: Gateway, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that nobody reads are bounded."""
    monkeypatch.setattr(server_link, "UNREAD_BYTES_MAX", 10_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1_000)
    writer.write(HELLO)
    for number in range(100_000):
        writer.write(put(number, b"garbage"))
        if number % 100 == 0:
            await asyncio.sleep(0)
        if gateway.counters.links_ended[LinkFault.SLOW]:
            break
    await until(lambda: gateway.counters.links_ended[LinkFault.SLOW] == 1)
    assert reader is not None
    writer.close()
    await others_go_on(server, far_end)


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the gateway's HTTP door, which wants a token."""
    app = make_gateway_app(gateway, token=TOKEN)
    async with (
        serve_gateway_app(app, ListenOptions(token=TOKEN)) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer the-token", "Content-Type": FRAME}) as client,
    ):
        yield client


async def test_a_posted_frame_is_durable(http: httpx.AsyncClient, far_end: FarEnd) -> None:
    """204 when it is on the bus, under the topic of its schema and the key of its source."""
    answer = await http.post("/v1/frames", content=event(FrameMaker("n1/gpu-events")))
    assert (answer.status_code, answer.content) == (204, b"")
    ((topic, key, _),) = far_end.taken
    assert (topic, key) == (Topic.EVENTS, "n1")


@pytest.mark.parametrize(
    ("headers", "params", "content", "status", "says"),
    [
        pytest.param({"Authorization": ""}, {}, b"x", 401, "a token is needed", id="no-token"),
        pytest.param({"Authorization": "Basic eDp5"}, {}, b"x", 401, "a token is needed", id="another-scheme"),
        pytest.param({"Authorization": "Bearer other"}, {}, b"x", 403, "not this gateway's token", id="wrong-token"),
        pytest.param({"Content-Type": "text/plain"}, {}, b"x", 415, "Content-Type", id="what-a-browser-sends"),
        pytest.param({}, {}, b"", 422, "too_short", id="empty"),
        pytest.param({}, {}, b"x" * 500, 422, "not_a_frame", id="garbage"),
        pytest.param({}, {}, finding(), 422, "foreign", id="a-finding"),
        pytest.param({}, {"topic": "findings"}, finding(), 422, "foreign", id="a-finding-by-name"),
        pytest.param({}, {"topic": "no.such"}, gpu(FrameMaker("n/gpu")), 422, "topic", id="no-topic"),
        pytest.param(
            {}, {"topic": "telemetry.train"}, gpu(FrameMaker("n/gpu")), 422, "wrong_topic", id="another-schema"
        ),
        pytest.param({}, {"key": "k" * 600}, gpu(FrameMaker("n/gpu")), 422, "key", id="long-key"),
        pytest.param({}, {}, bytes(FRAME_BYTES_MAX + 1), 413, "too_large", id="oversized"),
    ],
)
async def test_what_cannot_be_taken_is_a_problem_with_its_status(
    http: httpx.AsyncClient,
    far_end: FarEnd,
    headers: dict[str, str],
    params: dict[str, str],
    content: bytes,
    status: int,
    says: str,
) -> None:
    """RFC 9457, a sentence that says what was expected, and the next frame goes through."""
    answer = await http.post("/v1/frames", headers=headers, params=params, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]
    assert "the-token" not in answer.text
    assert (await http.post("/v1/frames", content=gpu(FrameMaker("n1/gpu")))).status_code == 204


@pytest.mark.parametrize(
    ("topic", "content", "reason", "size"),
    [
        pytest.param("no.such", b"x", FrameFault.WRONG_TOPIC, 1, id="no-topic"),
        pytest.param(
            "telemetry.gpu", bytes(FRAME_BYTES_MAX + 1), FrameFault.TOO_LARGE, FRAME_BYTES_MAX, id="oversized"
        ),
    ],
)
async def test_what_is_refused_by_http_is_counted_and_dead_lettered(
    http: httpx.AsyncClient,
    gateway: Gateway,
    far_end: FarEnd,
    topic: str,
    content: bytes,
    reason: FrameFault,
    size: int,
) -> None:
    """As what comes by a link: with what the sender called it, its reason and its beginning."""
    await http.post("/v1/frames", params={"topic": topic}, content=content)
    assert gateway.counters.refused[reason] == 1
    await until(lambda: far_end.frames(Topic.DEAD_LETTER))
    (letter,) = far_end.frames(Topic.DEAD_LETTER)
    (row,) = letter.batch.select(["topic", "reason", "payload_bytes", "payload"]).to_pylist()
    assert (row["topic"], row["reason"]) == (topic, reason)
    assert row["payload_bytes"] >= size
    assert content.startswith(row["payload"])


async def test_away_and_full_say_when_to_come_again(http: httpx.AsyncClient, gateway: Gateway, far_end: FarEnd) -> None:
    """503 and 429, each with Retry-After, and /readyz tells the same."""
    assert (await http.get("/readyz")).status_code == 200
    far_end.lose()
    away = await http.post("/v1/frames", content=gpu(FrameMaker("n1/gpu")))
    assert (away.status_code, away.headers["retry-after"]) == (503, "1")
    assert (await http.get("/readyz")).status_code == 503
    far_end.away = None
    await until(lambda: gateway.away() is None)
    gateway.room.bytes_max = 1
    assert gateway.room.take(1)
    full = await http.post("/v1/frames", content=gpu(FrameMaker("n1/gpu")))
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert (await http.get("/healthz")).status_code == 200


async def test_what_is_not_there_is_a_problem_too(http: httpx.AsyncClient) -> None:
    """Unknown paths and methods answer in the same form."""
    for answer in (await http.get("/nowhere"), await http.get("/v1/frames")):
        assert answer.status_code in (404, 405)
        assert answer.headers["content-type"] == "application/problem+json"
