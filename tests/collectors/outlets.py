"""A far end that a test takes away and gives back, which keeps what it was given."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from collectors.ripcord import Ripcord
from collectors.spool import Spool, SpoolConfig
from collectors.upward import Upward
from telemetry_bus import BusUnavailable, Frame, FrameMaker, Report, SourceLedger, Topic, decode, findings_in
from telemetry_bus.errors import FrameFault, FrameRefused
from telemetry_bus.findings import Finding
from telemetry_bus.runtime.clock import Clock

GUARD_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


class FarEnd:
    """A gateway or bus as an outlet sees it: ``away``, hanging (``answers`` is cleared), refusing, or there."""

    url = "fake://far-end"

    def __init__(self) -> None:
        self.away = False
        self.pages = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.refuses: set[int] = set()
        self.published: list[tuple[Topic, Frame]] = []
        self.findings: list[Finding] = []
        self.paged: list[Finding] = []
        self.sizes: list[int] = []
        self.pace = math.inf
        self.fails_after: int | None = None
        self.log: list[str] = []
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        """Open."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Take frames, or do not."""
        assert key
        await self.answers.wait()
        if self.fails_after == 0:
            self.away = True
        if self.away:
            raise BusUnavailable(self.url, "publish", OSError("away"))
        for payload in payloads:
            frame = decode(payload)
            if any(run.seq in self.refuses for run in frame.manifest if not run.source.endswith("/spool")):
                raise FrameRefused(self.url, FrameFault.FOREIGN, "not this one")
            if self.fails_after is not None and topic is Topic.BACKLOG:
                self.fails_after -= 1
            self.published.append((topic, frame))
            self.sizes.append(len(payload))
            self.log.append(topic.value)
        async with self._news:
            self._news.notify_all()

    async def report(self, payload: bytes) -> Report:
        """Publish a finding; while away, page it if this far end ``pages``."""
        await self.answers.wait()
        found = findings_in(decode(payload, frozenset({"finding/1"})))
        if not self.away:
            self.findings += found
            self.log.append("finding")
        elif self.pages:
            self.paged += found
        else:
            raise BusUnavailable(self.url, "report", OSError("away"))
        async with self._news:
            self._news.notify_all()
        return Report(not self.away, () if not self.away else ("oncall:delivery:proof",))

    @property
    def backlog_bytes_per_second(self) -> float:
        """What this far end grants."""
        return self.pace

    def frames(self, topic: Topic) -> list[Frame]:
        """What came on a topic, without what a spool tells of itself."""
        return [
            frame
            for found, frame in self.published
            if found is topic and not frame.manifest[0].source.endswith("/spool")
        ]

    def seqs(self, topic: Topic) -> list[int]:
        """The numbers of the frames on a topic, in the order in which they came."""
        return [run.seq for frame in self.frames(topic) for run in frame.manifest]

    def ledger(self) -> SourceLedger:
        """The ledger of a reader that has read everything, live and backlog."""
        ledger = SourceLedger()
        for _, frame in self.published:
            for run in frame.manifest:
                ledger.fresh(run, run.sent)
        return ledger

    async def until(self, true: object) -> None:
        """Wait until the function ``true`` says so."""
        assert callable(true)
        async with asyncio.timeout(GUARD_SECONDS), self._news:
            await self._news.wait_for(true)


def gpu_frame(maker: FrameMaker, now: float, watts: float = 1.0) -> Frame:
    """One row of one GPU."""
    columns = {"time": [now], "node": ["node-1"], "gpu": [0], "simulated": [False], "power_watts": [watts]}
    return maker.make("gpu/1", columns, now)


def train_frame(maker: FrameMaker, now: float, step: int, loss: float = 1.0) -> Frame:
    """One row of the one rank of a job."""
    columns = {
        "time": [now], "job": ["job"], "attempt": ["1"], "rank": [0], "world_size": [1], "step": [step],
        "loss": [loss], "grad_norm": [1.0], "scope": ["shard"],
    }  # fmt: skip
    return maker.make("train/1", columns, now)


@asynccontextmanager
async def spooling(folder: Path, clock: Clock, **options: object) -> AsyncIterator[Spool]:
    """An open spool."""
    async with SpoolConfig(folder, **options).build(clock) as spool:  # type: ignore[arg-type]
        yield spool


@asynccontextmanager
async def going_up(
    folder: Path, far: FarEnd, clock: Clock, *, ripcord: Ripcord | None = None, sleep: object = asyncio.sleep
) -> AsyncIterator[Upward]:
    """An open way up over a spool of its own."""
    async with (
        spooling(folder, clock) as spool,
        Upward(far, spool, clock, node="node-1", ripcord=ripcord, sleep=sleep) as upward,  # type: ignore[arg-type]
    ):
        yield upward
