"""A gateway, what stands behind it, and frames to send: for the tests of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from telemetry_bus import BusUnavailable, Frame, FrameMaker, Report, Run, Topic, encode
from telemetry_bus.frames import decode
from telemetry_bus.gateway import Gateway, GatewayOptions, LinkServer, ListenOptions, Pager
from telemetry_bus.runtime.clock import SystemClock

CLOCK = SystemClock()
WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


class FarEnd:
    """What stands behind a gateway: it keeps what it takes, and can be away, hang, or refuse."""

    url = "far://end"

    def __init__(self) -> None:
        self.taken: list[tuple[Topic, str, bytes]] = []
        self.asked = 0
        self.away: Exception | None = None
        self.refuse: Callable[[bytes], Exception | None] = lambda _: None
        self.answers = asyncio.Event()
        """While it is clear, nothing is answered."""
        self.answers.set()
        self.pace = math.inf

    async def __aenter__(self) -> Self:
        """It is open."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing to close."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Take them, or do as it was told."""
        self.asked += 1
        await self.answers.wait()
        if self.away is not None:
            raise self.away
        for payload in payloads:
            if (error := self.refuse(payload)) is not None:
                raise error
            self.taken.append((topic, key, payload))

    async def report(self, payload: bytes) -> Report:
        """Publish it."""
        await self.publish(Topic.FINDINGS, [payload])
        return Report(published=True)

    @property
    def backlog_bytes_per_second(self) -> float:
        """As it was told."""
        return self.pace

    def lose(self) -> None:
        """Be away from now on."""
        self.away = BusUnavailable(self.url, "publish", "it was stopped")

    def frames(self, topic: Topic) -> list[Frame]:
        """What it has of a topic."""
        return [decode(payload) for found, _, payload in self.taken if found is topic]

    def runs(self, topic: Topic) -> list[Run]:
        """The runs of all that it has of a topic, in order."""
        return [run for frame in self.frames(topic) for run in frame.manifest]


@contextlib.asynccontextmanager
async def a_gateway(
    far_end: FarEnd, options: GatewayOptions | None = None, pager: Pager | None = None
) -> AsyncIterator[Gateway]:
    """A gateway over `far_end`."""
    async with Gateway(far_end, CLOCK, options or GatewayOptions(), pager) as gateway:
        yield gateway


@contextlib.asynccontextmanager
async def listening(gateway: Gateway, **options: Any) -> AsyncIterator[LinkServer]:
    """The gateway's door for links."""
    async with LinkServer(gateway, CLOCK, ListenOptions(**options)) as server:
        yield server


async def until(true: Callable[[], object]) -> None:
    """Wait until it is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not true():
            await asyncio.sleep(0.002)


def gpu_frame(maker: FrameMaker, rows: int = 8) -> Frame:
    """A node's second."""
    now, node = CLOCK.now(), maker.source.partition("/")[0]
    columns = {
        "time": [now] * rows,
        "node": [node] * rows,
        "gpu": list(range(rows)),
        "simulated": [True] * rows,
        "power_watts": [500.0] * rows,
    }
    return maker.make("gpu/1", columns, now)


def gpu(maker: FrameMaker, rows: int = 8) -> bytes:
    """A node's second, encoded."""
    return encode(gpu_frame(maker, rows))


def train_frame(maker: FrameMaker, step: int, **values: Any) -> Frame:
    """One step of one rank."""
    now = CLOCK.now()
    job, attempt, rank, _ = maker.source.split("/")
    cells = {"time": now, "job": job, "attempt": attempt, "rank": int(rank), "step": step, "loss": 1.0, **values}
    return maker.make("train/1", {name: [value] for name, value in cells.items()}, now)


def event(maker: FrameMaker, kind: str = "xid") -> bytes:
    """A thing that happened on a node, encoded."""
    now = CLOCK.now()
    node = maker.source.partition("/")[0]
    columns = {"time": [now], "kind": [kind], "node": [node], "simulated": [True]}
    return encode(maker.make("event/1", columns, now))


def finding() -> bytes:
    """A report, as a collector makes it."""
    now = CLOCK.now()
    cells = {
        "time": now, "id": "f1", "detector": "nonfinite", "kind": "nonfinite", "state": "firing",
        "severity": "critical", "title": "loss is NaN", "simulated": True,
    }  # fmt: skip
    return encode(FrameMaker("n1/ripcord").make("finding/1", {name: [value] for name, value in cells.items()}, now))
