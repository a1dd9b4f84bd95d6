"""What waits between sampling and the bus: bounded, events first, the oldest GPU rows dropped first."""

import asyncio
from collections import deque
from dataclasses import dataclass

from telemetry_bus import Frame, Topic
from telemetry_bus.intake import LATE_SECONDS_MAX

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""A node of 8 GPUs makes some 2 KiB a second, so the age bounds it; 300,000 simulated GPUs make 60 MiB at once."""
QUEUE_FRAMES_MAX = 4_096
"""900 s of a node at 4 Hz, and its events."""
QUEUE_AGE_SECONDS_MAX = LATE_SECONDS_MAX
"""A live row that is older is refused by every reader."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame that waits. ``made`` is monotonic."""

    topic: Topic
    frame: Frame
    made: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that a bound forced out."""

    rows: int
    simulated: bool


class FrameQueue:
    """One reader, many writers, all in one loop. ``put`` never waits."""

    def __init__(self, frames_max: int = QUEUE_FRAMES_MAX, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._events: deque[Waiting] = deque()
        self._rows: deque[Waiting] = deque()
        self._bytes = 0
        self._held: Waiting | None = None
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._events) + len(self._rows)

    def put(self, topic: Topic, frame: Frame, now: float) -> list[Dropped]:
        """Let ``frame`` wait; return what had to go for it. ``now`` is monotonic."""
        lane = self._events if topic is Topic.EVENTS else self._rows
        lane.append(Waiting(topic, frame, now))
        self._bytes += frame.batch.nbytes
        self._idle.clear()
        self._changed.set()
        return self._bound(now)

    def _bound(self, now: float) -> list[Dropped]:
        dropped = []
        for lane in (self._events, self._rows):
            while lane and now - lane[0].made > QUEUE_AGE_SECONDS_MAX:
                dropped.append(self._drop(lane))
        # One frame larger than the bound is still let through: it is the newest.
        while len(self) > 1 and (len(self) > self._frames_max or self._bytes > self._bytes_max):
            dropped.append(self._drop(self._rows or self._events))
        return dropped

    def clear(self) -> list[Dropped]:
        """Drop everything, what was taken and is not done included."""
        if self._held is not None:
            self._rows.append(self._held)
            self._bytes += self._held.frame.batch.nbytes
            self.done()
        dropped = []
        for lane in (self._events, self._rows):
            while lane:
                dropped.append(self._drop(lane))
        return dropped

    async def take(self) -> Waiting:
        """Take the next frame out, waiting for one; say afterwards :meth:`done` or :meth:`put_back`."""
        while not len(self):
            self._changed.clear()
            await self._changed.wait()
        waiting = (self._events or self._rows).popleft()
        self._bytes -= waiting.frame.batch.nbytes
        self._held = waiting
        self._idle.clear()
        return waiting

    def done(self) -> None:
        """What was taken needs no more care."""
        self._held = None
        if not len(self):
            self._idle.set()

    def put_back(self, waiting: Waiting, now: float) -> list[Dropped]:
        """What was taken could not be sent: it is the next again, unless a bound drops it."""
        self._held = None
        (self._events if waiting.topic is Topic.EVENTS else self._rows).appendleft(waiting)
        self._bytes += waiting.frame.batch.nbytes
        dropped = self._bound(now)
        if not len(self):
            self._idle.set()
        return dropped

    async def drained(self) -> None:
        """Wait until nothing waits and nothing is on its way."""
        await self._idle.wait()

    def _drop(self, lane: "deque[Waiting]") -> Dropped:
        gone = lane.popleft()
        self._bytes -= gone.frame.batch.nbytes
        simulated = bool(gone.frame.rows) and bool(gone.frame.batch.column("simulated")[0].as_py())
        return Dropped(gone.frame.rows, simulated)
