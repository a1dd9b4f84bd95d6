"""A clock that is ten years ahead, through `nantucket up`: nothing is lost, and the offset is said."""

import asyncio
import contextlib
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from alerting.reader import IncidentReader
from alerting.store import StoreReader
from app.processes import talking
from telemetry_bus import Earliest, FindingKind, FrameMaker, Intake, Topic, encode, open_bus
from telemetry_bus.bus import Bus
from telemetry_bus.runtime.clock import SystemClock

TEN_YEARS_SECONDS = 10 * 365.25 * 86_400.0
READY_SECONDS = 50.0
SAID_SECONDS = 60.0
"""The detector holds for ten seconds before it speaks."""
JOB, NODE = "from-the-future", "node-of-the-future"


class WrongClock:
    """A training process that speaks docs/wire.md by hand, and stamps everything ten years ahead."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: SystemClock) -> None:
        self._reader, self._writer, self._clock = reader, writer, clock
        self.seq = 0

    async def hello(self) -> None:
        """The handshake and the first message."""
        head = ("GET /v1/sdk HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: nantucket-sdk/1")
        self._writer.write(("\r\n".join([*head, f"Nantucket-Job: {JOB}"]) + "\r\n\r\n").encode())
        assert (await self._reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        boot = str(uuid.uuid4())
        self._say({"type": "hello", "version": 1, "sdk": "t/1", "boot": boot, "job": JOB, "attempt": "1", "rank": 0})

    async def step(self) -> None:
        """One row of one step, and wait until it is durable."""
        now = self._clock.now() + TEN_YEARS_SECONDS
        row = {"time": now, "step": self.seq, "loss": 1.0, "grad_norm": 1.0, "nonfinite": 0}
        self._say({"type": "rows", "stream": "train", "seq": self.seq, "sent": now, "rows": [row]})
        (length,) = struct.unpack("<I", await self._reader.readexactly(4))
        said = json.loads(await self._reader.readexactly(length))
        assert said == {"type": "ack", "stream": "train", "seq": self.seq}
        self.seq += 1

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _say(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self._writer.write(struct.pack("<I", len(text)) + text)


async def gpus_of_the_future(bus: Bus, maker: FrameMaker, clock: SystemClock) -> None:
    """One reading of one GPU by a collector whose clock is wrong."""
    now = clock.now() + TEN_YEARS_SECONDS
    columns = {"time": [now], "node": [NODE], "gpu": [0], "simulated": [False], "power_watts": [650.0]}
    await bus.publish(Topic.GPU, [encode(maker.make("gpu/1", columns, now))])


async def rows_of(bus: Bus, topic: Topic, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The rows of a topic as every reader gets them: through the intake."""
    intake, rows = Intake(), []
    async with bus.subscribe([topic], Earliest()) as subscription:
        if await subscription.caught_up():
            return []
        async for records in subscription:
            for record in records:
                taken = intake.take(record)
                assert taken.refusals == ()
                if taken.frame is not None:
                    found = taken.frame.batch.to_pylist()
                    rows += [{**row, "at": record.time} for row in found if wanted(row)]
            if await subscription.caught_up():
                break
    return rows


async def incidents_of(folder: Path) -> AsyncIterator[list[dict[str, Any]]]:
    """The clock incidents so far, again and again."""
    async with StoreReader(folder / "alerts.sqlite") as store:
        reader = IncidentReader(store, SystemClock())
        while True:
            found = await reader.incidents(limit=100)
            yield [one for one in found if one["kind"] == FindingKind.CLOCK_OFFSET]


@pytest.mark.timeout(150)
async def test_a_clock_ten_years_ahead_costs_no_row_and_is_said(tmp_path: Path) -> None:
    """A job's rows and a node's frames are kept with corrected times, and an incident names each and the offset."""
    clock = SystemClock()
    command = ["app.cli", "up", "--state", str(tmp_path), "--simulate", "8", "--port", "0", "--json"]
    async with talking("up", command) as up:
        ready = await up.line(lambda line: line.get("ready"), READY_SECONDS)
        job = WrongClock(*await asyncio.open_unix_connection(ready["socket"]), clock)
        await job.hello()
        async with open_bus((tmp_path / "bus").as_uri(), clock) as bus, asyncio.timeout(SAID_SECONDS):
            maker, frames = FrameMaker(NODE), 0
            async for incidents in incidents_of(tmp_path):
                named = json.dumps(incidents)
                if JOB in named and NODE in named:
                    break
                await job.step()
                await gpus_of_the_future(bus, maker, clock)
                frames += 1
                await asyncio.sleep(0.5)
            steps = await rows_of(bus, Topic.TRAIN, lambda row: row["job"] == JOB)
            gpus = await rows_of(bus, Topic.GPU, lambda row: row["node"] == NODE)
        await job.close()
    assert [row["step"] for row in steps] == list(range(job.seq))
    assert len(gpus) == frames
    assert all(abs(row["time"].timestamp() - row["at"]) < 10.0 for row in steps + gpus)
    offsets = [one["evidence"]["offset_seconds"] for one in incidents]
    assert offsets
    assert all(abs(offset - TEN_YEARS_SECONDS) < 60.0 for offset in offsets)
