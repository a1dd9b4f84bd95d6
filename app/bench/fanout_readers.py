"""The readers of ``bench fanout``: so many real connections, some of which do not read.

A reader looks at every byte that it is given for the stamps of when it was published; a slow one stops reading once its
answer has begun, and goes on only when all others are done.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from app.bench.fanout_source import STAMP_SCALE
from app.descriptors import raise_limit
from telemetry_bus.runtime.clock import SystemClock

CONNECT_AT_ONCE = 50
"""Connections that are opened side by side."""
CLOCK = SystemClock()
SETTLE_SECONDS = 3.0
"""Snapshots, and what was published before, are not measured."""
STEPS = re.compile(rb'"step":\[(\d{16})')
"""The oldest step of a curve event: what waited longest for it."""
NODES = re.compile(rb"s(\d{16})s")


@dataclass(slots=True)
class Measured:
    """What all readers have seen between the beginning and the end of the measurement (monotonic seconds)."""

    pattern: re.Pattern[bytes]
    begin: float = float("inf")
    end: float = float("inf")
    bytes: int = 0
    staleness: list[float] = field(default_factory=list)
    broken: int = 0


class Reader(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, slow: bool, measured: Measured) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = 0
        self._request, self._slow, self._measured = request, slow, measured
        self._last = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if not self.begun.done():
            status = data.split(b"\r\n", 1)[0]
            self.begun.set_result(None) if b" 200 " in status else self.begun.set_exception(OSError(status.decode()))
            if self._slow:
                assert self._transport is not None
                self._transport.pause_reading()
        elif not self._slow:
            self._look(data)

    def _look(self, data: bytes) -> None:
        measured = self._measured
        if not measured.begin <= time.monotonic() < measured.end:
            return
        measured.bytes += len(data)
        now = CLOCK.now()
        # Stamps are looked for in order; the rows of one frame carry the same one.
        for found in measured.pattern.finditer(data):
            if found[1] != self._last:
                self._last = found[1]
                measured.staleness.append(now - int(found[1]) / STAMP_SCALE)

    def connection_lost(self, error: Exception | None) -> None:
        if time.monotonic() < self._measured.end:
            self._measured.broken += 1
        if not self.begun.done():
            self.begun.set_exception(error or ConnectionError("closed before it answered"))

    def go_on(self) -> None:
        """Read again."""
        assert self._transport is not None
        self._transport.resume_reading()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()


async def read(port: int, path: str, readers: int, slow: int, seconds: float) -> None:
    """Connect, measure, and say what came, a JSON line for each stage."""
    loop = asyncio.get_running_loop()
    measured = Measured(NODES if "/frames/" in path else STEPS)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    made: list[Reader] = []

    async def connect(number: int) -> Reader:
        _, reader = await loop.create_connection(lambda: Reader(request, number < slow, measured), "127.0.0.1", port)
        await reader.begun
        return reader

    for begin in range(0, readers, CONNECT_AT_ONCE):
        made += await asyncio.gather(*(connect(at) for at in range(begin, min(readers, begin + CONNECT_AT_ONCE))))
    await asyncio.sleep(SETTLE_SECONDS)
    measured.begin = time.monotonic()
    measured.end = measured.begin + seconds
    print(json.dumps({"measuring": True}), flush=True)
    await asyncio.sleep(seconds)
    told = {"stamps": len(measured.staleness), "bytes": measured.bytes, "broken": measured.broken}
    print(json.dumps({"measured": True, **told, **_percentiles(measured.staleness)}), flush=True)
    for reader in made[:slow]:
        reader.go_on()
    await asyncio.to_thread(sys.stdin.readline)
    for reader in made:
        reader.close()


def _percentiles(staleness: list[float]) -> dict[str, float | None]:
    if not staleness:
        return {"staleness_p50_ms": None, "staleness_p99_ms": None, "staleness_max_ms": None}
    p50, p99 = np.percentile(staleness, [50, 99], method="higher") * 1000.0
    worst = max(staleness) * 1000.0
    return {
        "staleness_p50_ms": round(float(p50), 1),
        "staleness_p99_ms": round(float(p99), 1),
        "staleness_max_ms": round(worst, 1),
    }


def main() -> None:
    """Read the arguments and read the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--readers", type=int, required=True)
    parser.add_argument("--slow", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    raise_limit()
    asyncio.run(read(given.port, given.path, given.readers, given.slow, given.seconds))


if __name__ == "__main__":
    main()
