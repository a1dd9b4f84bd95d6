"""What has arrived at the far end of ``bench spool``, as every reader sees it: through the intake and its ledger."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from telemetry_bus.bus import Bus, Earliest, Record
from telemetry_bus.frames import Frame
from telemetry_bus.intake import Intake
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.schemas import EventKind
from telemetry_bus.topics import TELEMETRY, Topic


@dataclass(slots=True)
class Arrivals:
    """``back`` is when the bus was put back (UTC seconds)."""

    back: float
    intake: Intake = field(default_factory=Intake)
    visible: Counter[tuple[str, bytes, int]] = field(default_factory=Counter)
    """How often each frame came out of the intake, by source, boot and number."""
    live_seconds: list[float] = field(default_factory=list)
    """From a live row's reading to the log, for rows that were read after the bus was back."""
    backlog_rows: list[float] = field(default_factory=list)
    backlog_first: float | None = None
    backlog_last: float | None = None
    refused: int = 0
    drained: set[str] = field(default_factory=set)
    """Sources that have said, after the bus was back, that their spool is empty."""

    def take(self, record: Record) -> None:
        """Count one record."""
        taken = self.intake.take(record)
        self.refused += len(taken.refusals)
        if taken.frame is None:
            return
        for run in taken.frame.manifest:
            self.visible[(run.source, run.boot.bytes, run.seq)] += 1
        if record.topic is Topic.BACKLOG:
            self.backlog_rows += [float(np.min(taken.frame.times())), float(np.max(taken.frame.times()))]
            self.backlog_first = record.time if self.backlog_first is None else self.backlog_first
            self.backlog_last = record.time
        elif record.topic is Topic.GPU:
            times = taken.frame.times()
            self.live_seconds += [record.time - time for time in set(times.tolist()) if time > self.back]
        elif record.topic is Topic.EVENTS and record.time > self.back:
            self._note_depth(taken.frame)

    def _note_depth(self, frame: Frame) -> None:
        for row in frame.batch.to_pylist():
            if row["kind"] == EventKind.SPOOL:
                detail = json.loads(row["detail"])
                if not detail["away"] and not detail["frames"]:
                    self.drained.add(row["node"])

    @property
    def missing(self) -> int:
        """Frames that were made and have not come, from the first number of each boot on."""
        by_boot: dict[tuple[str, bytes], set[int]] = {}
        for source, boot, seq in self.visible:
            by_boot.setdefault((source, boot), set()).add(seq)
        return sum(max(seqs) + 1 - len(seqs) for seqs in by_boot.values())

    def result(self) -> dict[str, Any]:
        """The figures."""
        ledger = self.intake.ledger
        catch_up = None
        if self.backlog_first is not None and self.backlog_last is not None:
            took = max(self.backlog_last - self.back, 1e-3)
            catch_up = round((max(self.backlog_rows) - min(self.backlog_rows)) / took, 1)
        live = [seconds for seconds in self.live_seconds if seconds >= 0]
        return {
            "frames": len(self.visible),
            "frames_missing": max(self.missing, ledger.outstanding + ledger.lost_total),
            "frames_duplicate": sum(count - 1 for count in self.visible.values()),
            "frames_sent_again": ledger.duplicate_total,
            "refused": self.refused,
            "catch_up_factor": catch_up,
            "drained_after_s": None if self.backlog_last is None else round(self.backlog_last - self.back, 2),
            "live_p99_s": round(float(np.percentile(live, 99, method="higher")), 3) if live else None,
        }


async def read_until(bus: Bus, arrivals: Arrivals, seconds_max: float, later_seconds: float) -> None:
    """Read from the beginning until a spool says that it is empty, and ``later_seconds`` more."""
    clock = SystemClock()
    end, waits = clock.monotonic() + seconds_max, True
    async with bus.subscribe((*TELEMETRY, Topic.BACKLOG), Earliest()) as subscription:
        batches = aiter(subscription)
        with contextlib.suppress(TimeoutError):
            while (left := end - clock.monotonic()) > 0:
                async with asyncio.timeout(left):
                    records = await anext(batches)
                for record in records:
                    arrivals.take(record)
                if waits and arrivals.drained:
                    end, waits = min(end, clock.monotonic() + later_seconds), False


async def read_all(bus: Bus, arrivals: Arrivals) -> None:
    """Read everything that is there."""
    async with bus.subscribe((*TELEMETRY, Topic.BACKLOG), Earliest()) as subscription:
        async for records in subscription:
            for record in records:
                arrivals.take(record)
            if await subscription.caught_up():
                return
