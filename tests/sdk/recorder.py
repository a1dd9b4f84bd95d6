"""What the tests of the SDK and of its listener share: a bus that records, a client that speaks raw bytes, a job."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

from telemetry_bus.errors import BusUnavailable
from telemetry_bus.frames import Frame, decode, encode
from telemetry_bus.ledger import SourceLedger
from telemetry_bus.topics import Topic

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "sdk" / "src"


class Recorder:
    """Stands where the bus is: it encodes and decodes each frame as the bus does, and keeps it.

    ``open`` holds publishing back while it is clear; ``away`` makes it fail as a bus does that cannot be reached.
    """

    def __init__(self) -> None:
        self.frames: list[tuple[Topic, Frame]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.away = False
        self._more = asyncio.Condition()

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Take a frame, as ``TrainingListener`` wants it taken."""
        self.entered.set()
        await self.open.wait()
        if self.away:
            raise BusUnavailable("file:///recorder", "append", OSError("away"))
        self.frames.append((topic, decode(encode(frame))))
        async with self._more:
            self._more.notify_all()

    async def until(self, topic: Topic, rows: int) -> list[dict[str, Any]]:
        """Wait for at least this many rows of a topic, and return all of them."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.rows(topic)) >= rows)
        return self.rows(topic)

    def rows(self, topic: Topic) -> list[dict[str, Any]]:
        """Return the rows of a topic in the order of publishing."""
        return [row for at, frame in self.frames if at is topic for row in frame.batch.to_pylist()]

    def ledger(self) -> SourceLedger:
        """Return the ledger of a reader that has read everything."""
        ledger = SourceLedger()
        for _, frame in self.frames:
            for run in frame.manifest:
                ledger.fresh(run, run.sent)
        return ledger


class Client:
    """One connection to a listener, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def unix(cls, path: Path) -> Client:
        """Connect to a socket."""
        return cls(*await asyncio.open_unix_connection(path))

    @classmethod
    async def tcp(cls, address: tuple[str, int]) -> Client:
        """Connect to a port."""
        return cls(*await asyncio.open_connection(*address))

    async def http(self, request: str) -> tuple[int, dict[str, Any]]:
        """Send a request's head; return the status and, of an error, the problem."""
        self.writer.write(request.replace("\n", "\r\n").encode() + b"\r\n")
        return await self.http_answer()

    async def http_answer(self) -> tuple[int, dict[str, Any]]:
        """Read the answer to the handshake."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ")[1])
        return status, {} if status == 101 else json.loads(await self.reader.read())

    async def greet(self, boot: uuid.UUID | None = None, token: str | None = None, **changes: Any) -> None:
        """Shake hands and say hello as rank 0 of job ``j``."""
        assert await self.http(request(token=token)) == (101, {})
        self.send(hello(boot or uuid.uuid4(), **changes))

    def send(self, body: Any) -> None:
        """Send a message: an object as JSON, bytes as they are."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.writer.write(struct.pack("<I", len(text)) + text)

    async def answer(self) -> dict[str, Any]:
        """Read the next message of the listener."""
        (length,) = struct.unpack("<I", await self.reader.readexactly(4))
        answer: dict[str, Any] = json.loads(await self.reader.readexactly(length))
        return answer

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        await self.writer.wait_closed()


def request(token: str | None = None, path: str = "/v1/sdk", upgrade: str = "nantucket-sdk/1", job: str = "j") -> str:
    """Return the head of a handshake."""
    head = f"GET {path} HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: {upgrade}\nNantucket-Job: {job}\n"
    return head if token is None else f"{head}Authorization: Bearer {token}\n"


def hello(boot: uuid.UUID, **changes: Any) -> dict[str, Any]:
    """Return a hello."""
    return {"type": "hello", "version": 1, "boot": str(boot), "job": "j", "attempt": "a", "rank": 0, **changes}


def rows(seq: int, *found: dict[str, Any], stream: str = "train", sent: float = 1_700_000_000.0) -> dict[str, Any]:
    """Return a rows message; without rows, one of a single row whose step is ``seq``."""
    default = {"time": sent, "step": seq, "loss": 1.0}
    return {"type": "rows", "stream": stream, "seq": seq, "sent": sent, "rows": list(found) or [default]}


async def start_job(code: str, environment: dict[str, str], python: str = sys.executable) -> asyncio.subprocess.Process:
    """Start a program that has ``nantucket`` and ``time`` imported, with warnings as errors."""
    return await asyncio.create_subprocess_exec(
        python,
        *("-W", "error", "-c"),
        "import nantucket, time, os, sys, logging\nlogging.basicConfig()\n" + code,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SDK), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run_job(code: str, environment: dict[str, str], python: str = sys.executable) -> tuple[int, str, str]:
    """Run such a program to its end; return its status, standard output and standard error."""
    process = await start_job(code, environment, python)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
