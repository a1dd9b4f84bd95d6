"""From messages to frames on the real embedded bus: whatever passes the listener's checks becomes a frame or is
refused, and nothing that a job says ends the collector."""

from __future__ import annotations

import asyncio
import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import Refused, WireRefusal
from collectors.training import TrainingListener
from collectors.training_lanes import Counters, Lane, Message, Publish, bytes_in_frame, columns_of
from collectors.training_memory import ByteBudget
from collectors.training_wire import MESSAGE_ROWS_MAX, STREAM_SCHEMAS, Hello, RowsMessage, Stream
from telemetry_bus.bus import Bus, Earliest, open_bus
from telemetry_bus.frames import Frame, Run, batch_of, decode, encode
from telemetry_bus.publisher import publish_frame
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Client, hello, request, rows

BURST = 16
"""Messages at once: as many as an SDK sends of one stream before the first is acknowledged."""
FRAME_HEAD_BYTES = 16 * 1024
"""A frame's head, Arrow's description of some 30 columns, and up to three paddings of 64 bytes for each of them."""


class Held:
    """The bus's own `publish_frame` behind a gate, so that a burst is there at once, whatever the machine does."""

    def __init__(self, bus: Bus) -> None:
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self._bus = bus

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Publish once the gate is open."""
        self.entered.set()
        await self.open.wait()
        await publish_frame(self._bus, topic, frame)


async def frames_of(bus: Bus, topic: Topic, rows_wanted: int) -> list[Frame]:
    """Return the topic's frames from the beginning, until there are this many rows."""
    frames: list[Frame] = []
    async with bus.subscribe([topic], Earliest()) as subscription:
        async for records in subscription:
            frames += [decode(record.payload) for record in records]
            if sum(frame.rows for frame in frames) >= rows_wanted:
                break
    return frames


def longest_row(seq: int) -> dict[str, Any]:
    """Return a row as long as 1,024 of them may be in one message."""
    return {"time": 1_700_000_000.0, "step": seq, "loss": "NaN", "first_nonfinite": "é" * 75}


async def test_the_largest_burst_of_the_longest_rows_reaches_the_bus(tmp_path: Path) -> None:
    """All that the limits allow at once, with the longest identity, is published and acknowledged on the real bus."""
    clock = ManualClock()
    who: dict[str, Any] = dict.fromkeys(("role", "node", "region", "uuid"), "\N{SNOWMAN}" * 84) | {"attempt": "a" * 96}
    async with open_bus(f"file://{tmp_path}/bus", clock) as bus:
        held = Held(bus)
        async with TrainingListener(held.publish, clock, node="n", unix_path=tmp_path / "c.sock") as listener:
            client = await Client.unix(tmp_path / "c.sock")
            await client.greet(**who)
            for seq in range(BURST):
                body = rows(seq, *[longest_row(seq)] * MESSAGE_ROWS_MAX)
                client.send(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
            async with asyncio.timeout(30):
                while listener.lanes[Stream.TRAIN].waiting < BURST - 1:
                    await asyncio.sleep(0.001)
            held.open.set()
            answers = [await client.answer() for _ in range(BURST)]
            await client.close()
        assert [(answer["type"], answer["seq"]) for answer in answers] == [("ack", seq) for seq in range(BURST)]
        found = await frames_of(bus, Topic.TRAIN, BURST * MESSAGE_ROWS_MAX)
        assert sum(frame.rows for frame in found) == BURST * MESSAGE_ROWS_MAX


@pytest.mark.parametrize("field", ["role", "node", "region", "uuid"])
async def test_an_identity_is_bounded_in_bytes(tmp_path: Path, field: str) -> None:
    """253 emoji are a kilobyte in every row: they are refused at hello, with what they have and what is allowed."""
    clock = ManualClock()
    async with open_bus(f"file://{tmp_path}/bus", clock) as bus:
        publish = partial(publish_frame, bus)
        async with TrainingListener(publish, clock, node="n", unix_path=tmp_path / "c.sock") as listener:
            client = await Client.unix(tmp_path / "c.sock")
            await client.http(request())
            client.send(hello(uuid.uuid4(), **{field: "\N{WHALE}" * 253}))
            answer = await client.answer()
            assert answer["reason"] == Refused.BAD_HELLO
            assert answer["message"] == f"{field}: expected a text of at most 253 bytes in UTF-8, found 1012"
            assert listener.counters.refused[Refused.BAD_HELLO] == 1
            await client.close()


class Answers:
    """Keeps what a lane says about its messages."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []
        self.all = asyncio.Event()
        self.wanted = 0

    def acknowledge(self, stream: Stream, seq: int) -> None:
        """Keep an acknowledgement."""
        self._keep(seq, "ack")

    def refuse(self, stream: Stream, seq: int, refusal: WireRefusal) -> None:
        """Keep a refusal."""
        self._keep(seq, f"{refusal.reason}: {refusal}")

    def _keep(self, seq: int, what: str) -> None:
        self.said.append((seq, what))
        if len(self.said) == self.wanted:
            self.all.set()


def message_of(seq: int, answers: Answers, **cells: Any) -> Message:
    """Return a message of one row that was not checked."""
    who = Hello("sdk", uuid.UUID(int=1), "j", "a", 0, None, {})
    row = {"time": 1_700_000_000.0, "step": seq, **cells}
    return Message(who, RowsMessage(Stream.TRAIN, seq, 0.0, [row], 0, 0), 100, lambda: 0.0, [answers])


async def laned(publish: Publish, messages: list[Message], answers: Answers) -> tuple[Counters, ByteBudget]:
    """Run these messages through a lane until each has its answer."""
    counters, budget = Counters(), ByteBudget(10_000)
    lane = Lane(Stream.TRAIN, publish, budget, counters, ManualClock())
    answers.wanted = len(messages)
    for message in messages:
        await budget.take(message.size)
        await lane.accept(message, None, "n")
    running = asyncio.ensure_future(lane.run())
    async with asyncio.timeout(30):
        await answers.all.wait()
        await lane.idle()
    running.cancel()
    return counters, budget


UNFRAMEABLE = [
    pytest.param({"first_nonfinite": "x" * 70_000}, "string_too_long: first_nonfinite has a text", id="for a reader"),
    pytest.param({"first_nonfinite": "x" * 17_000_000}, "string_too_long", id="for a frame's size"),
    pytest.param({"phase": "\ud800"}, "surrogates not allowed", id="for Arrow: half of a surrogate pair"),
    pytest.param({"microbatch": 2**40}, "expected 1 rows that a frame of the bus can hold", id="for Arrow: 41 bits"),
    pytest.param({"loss": "x"}, "expected 1 rows that a frame of the bus can hold", id="for Arrow: a word"),
]


@pytest.mark.parametrize(("cells", "message"), UNFRAMEABLE)
async def test_the_one_message_that_cannot_be_a_frame_is_refused_and_the_others_are_published(
    tmp_path: Path, cells: dict[str, Any], message: str
) -> None:
    """If a check were missing, the message at fault is refused and counted; those beside it become durable."""
    async with open_bus(f"file://{tmp_path}", ManualClock()) as bus:
        answers = Answers()
        sent = [message_of(seq, answers, **(cells if seq == 2 else {})) for seq in range(6)]
        counters, budget = await laned(partial(publish_frame, bus), sent, answers)
        said = dict(answers.said)
        assert [said.pop(seq) for seq in (0, 1, 3, 4, 5)] == ["ack"] * 5
        assert said[2].startswith("unframeable: the message: expected")
        assert message in said[2]
        assert counters.refused[Refused.UNFRAMEABLE] == 1
        assert budget.held == 0
        steps = [row["step"] for frame in await frames_of(bus, Topic.TRAIN, 5) for row in frame.batch.to_pylist()]
        assert steps == [0, 1, 3, 4, 5]


async def test_a_listener_whose_own_name_spoils_every_frame_refuses_and_lives(tmp_path: Path) -> None:
    """Rows that can never be a frame are refused to their sender, which would else send them for ever."""
    clock = ManualClock()
    async with (
        open_bus(f"file://{tmp_path}/bus", clock) as bus,
        TrainingListener(
            partial(publish_frame, bus), clock, node="n", region="x" * 70_000, unix_path=tmp_path / "c.sock"
        ) as listener,
    ):
        client = await Client.unix(tmp_path / "c.sock")
        await client.greet()
        for seq in range(3):
            client.send(rows(seq))
            answer = await client.answer()
            assert (answer["type"], answer["reason"], answer["seq"]) == ("refuse", "unframeable", seq)
        client.send({"type": "bye"})
        assert await client.reader.read() == b""
        assert listener.counters.refused[Refused.UNFRAMEABLE] == 3
        assert listener.held_bytes == 0
        await client.close()


SURE: dict[str, Any] = {"time": 1.0, "step": 1, "job": "j", "attempt": "a", "rank": 0}
ROWS: dict[Stream, dict[str, Any]] = {
    Stream.TRAIN: SURE | {"node": "n" * 253, "first_nonfinite": "\N{WHALE}" * 512, "skipped": True, "loss": 1.0},
    Stream.METRIC: SURE | {"name": "é" * 128, "layer": "x", "value": 0.0},
    Stream.EVENT: SURE | {"kind": "stack", "simulated": False, "message": "\N{WHALE}" * 4096, "detail": "{}"},
}


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("stream", Stream)
def test_what_a_message_takes_in_a_frame_is_not_estimated_too_low(stream: Stream, count: int) -> None:
    """The estimate is an upper bound, but for the frame's own head and Arrow's padding, which are bounded alone."""
    message = RowsMessage(stream, 0, 1.0, [ROWS[stream]] * count, 0, 0)
    schema_id = STREAM_SCHEMAS[stream]
    who = Hello("sdk", uuid.UUID(int=1), "j", "a", 0, None, {})
    columns = columns_of(stream, [Message(who, message, 0, lambda: 0.0, [])])
    frame = Frame(schema_id, batch_of(schema_id, columns), (Run("s" * 256, who.boot, 0, count, 1.0),))
    assert len(encode(frame)) <= bytes_in_frame(message) + FRAME_HEAD_BYTES
