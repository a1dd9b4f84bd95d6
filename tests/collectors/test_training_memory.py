"""What SDKs may hold of the collector's memory: who stalls or floods takes it from nobody else."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import Refused
from collectors.training import Limits, TrainingListener
from collectors.training_memory import UNFINISHED_BYTES_MAX, Arrivals
from collectors.training_wire import HELLO_BYTES_MAX, MESSAGE_BYTES_MAX, Stream
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Client, Recorder, request, rows

PATIENT = Limits(body_seconds=3_600.0)
"""No message comes too late: what is taken promptly is so without the deadline's help."""


async def greeted(listener: TrainingListener, rank: int) -> Client:
    """Return a client that has said hello as this rank."""
    assert listener.unix_path is not None
    client = await Client.unix(listener.unix_path)
    await client.greet(rank=rank)
    return client


@pytest.mark.parametrize(
    ("stalled", "sent_bytes"), [(300, 0), (96, MESSAGE_BYTES_MAX - 1)], ids=["announced only", "all but a byte"]
)
async def test_who_announces_messages_and_stalls_holds_up_nobody(tmp_path: Path, stalled: int, sent_bytes: int) -> None:
    """An honest NaN is acknowledged while hundreds of peers hold back the end of theirs."""
    recorder = Recorder()
    async with TrainingListener(
        recorder.publish, ManualClock(), node="n", unix_path=tmp_path / "c.sock", limits=PATIENT
    ) as listener:
        peers = [await greeted(listener, rank) for rank in range(stalled)]
        for peer in peers:
            peer.writer.write(struct.pack("<I", MESSAGE_BYTES_MAX) + b" " * sent_bytes)
        wanted = min(stalled * sent_bytes, UNFINISHED_BYTES_MAX - MESSAGE_BYTES_MAX)
        async with asyncio.timeout(30):
            while listener.arrivals.held < wanted:
                await asyncio.sleep(0.001)
        honest = await greeted(listener, stalled)
        honest.send(rows(0, {"time": 1_700_000_000.0, "step": 0, "loss": "NaN"}))
        async with asyncio.timeout(30):
            assert (await honest.answer())["type"] == "ack"
        assert listener.arrivals.held <= UNFINISHED_BYTES_MAX
        for client in (*peers, honest):
            client.writer.transport.abort()
    assert listener.arrivals.held == 0
    assert len(recorder.rows(Topic.TRAIN)) == 1


async def test_beyond_the_limit_the_message_that_began_first_is_given_up(tmp_path: Path) -> None:
    """Its connection ends with the reason; the others, and the one that came last, go on."""
    limits = Limits(body_seconds=3_600.0, unfinished_bytes=1_000)
    async with TrainingListener(
        Recorder().publish, ManualClock(), node="n", unix_path=tmp_path / "c.sock", limits=limits
    ) as listener:
        first, second, third = [await greeted(listener, rank) for rank in range(3)]
        for held, client in ((400, first), (800, second)):
            client.writer.write(struct.pack("<I", 900) + b" " * 400)
            async with asyncio.timeout(30):
                while listener.arrivals.held < held:
                    await asyncio.sleep(0.001)
        third.writer.write(struct.pack("<I", 500) + b" " * 400)
        answer = await first.answer()
        assert (answer["type"], answer["reason"]) == ("refuse", Refused.MESSAGE_LATE)
        assert (
            answer["message"] == "the message: expected 900 bytes before 1000 of unfinished ones were held, found fewer"
        )
        assert await first.reader.read() == b""
        third.writer.write(b" " * 98 + b"{}")
        assert (await third.answer())["reason"] == Refused.NOT_A_MESSAGE
        assert listener.counters.refused[Refused.MESSAGE_LATE] == 1
        for client in (first, second, third):
            await client.close()
    assert listener.arrivals.held == 0


async def test_a_message_may_come_too_late_and_be_given_up_in_one_turn_of_the_loop() -> None:
    """Whoever makes room by it does not fail on its deadline, which has just passed."""
    arrivals, deadlines = Arrivals(10), []

    async def late() -> None:
        async with asyncio.timeout(3_600.0) as deadline:
            with arrivals.reading(deadline) as message:
                deadlines.append(deadline)
                arrivals.add(message, b" " * 8)
                await asyncio.Event().wait()

    reading = asyncio.ensure_future(late())
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    expired: list[bool] = []
    async with asyncio.timeout(3_600.0) as own:
        with arrivals.reading(own) as message:
            deadlines[0].reschedule(loop.time())
            turned = asyncio.Event()

            def add() -> None:
                expired.append(deadlines[0].expired() and not reading.done())
                arrivals.add(message, b" " * 8)
                turned.set()

            loop.call_soon(add)
            await turned.wait()
            assert (expired, arrivals.held) == ([True], 8)
    with pytest.raises(TimeoutError):
        await reading
    assert arrivals.held == 0


async def test_one_connection_holds_no_more_than_its_share(tmp_path: Path) -> None:
    """While the bus is slow, a flood from one process leaves room for the row of another."""
    recorder = Recorder()
    recorder.open.clear()
    limits = Limits(held_bytes=8 * MESSAGE_BYTES_MAX, connection_bytes=2 * MESSAGE_BYTES_MAX)
    padding = " " * (MESSAGE_BYTES_MAX - 512)
    async with TrainingListener(
        recorder.publish, ManualClock(), node="n", unix_path=tmp_path / "c.sock", limits=limits
    ) as listener:
        flood, honest = await greeted(listener, 0), await greeted(listener, 1)

        async def pour() -> None:
            for seq in range(12):
                flood.send(rows(seq, {"time": 1.0, "step": seq, "later": padding}))
                await flood.writer.drain()

        pouring = asyncio.ensure_future(pour())
        async with asyncio.timeout(30):
            while listener.held_bytes < MESSAGE_BYTES_MAX:
                await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert listener.held_bytes <= limits.connection_bytes
        honest.send(rows(0))
        async with asyncio.timeout(30):
            while listener.lanes[Stream.TRAIN].waiting < 2:
                await asyncio.sleep(0.001)
        recorder.open.set()
        assert (await honest.answer())["type"] == "ack"
        assert [(await flood.answer())["seq"] for _ in range(12)] == list(range(12))
        await pouring
        for client in (flood, honest):
            await client.close()
    assert listener.held_bytes == 0


async def test_a_hello_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """Before a peer has said who it is, it may fill 16 KiB and not a whole message's place."""
    async with TrainingListener(Recorder().publish, ManualClock(), node="n", unix_path=tmp_path / "c.sock") as listener:
        client = await Client.unix(tmp_path / "c.sock")
        await client.http(request())
        client.writer.write(struct.pack("<I", HELLO_BYTES_MAX + 1))
        answer: dict[str, Any] = await client.answer()
        assert answer["reason"] == Refused.MESSAGE_TOO_LARGE
        assert answer["message"] == "the message's length: expected 1 to 16384 bytes, found 16385"
        assert listener.counters.refused[Refused.MESSAGE_TOO_LARGE] == 1
        await client.close()
