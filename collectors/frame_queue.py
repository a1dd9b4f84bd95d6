"""What waits between sampling and sending: bounded, events first, the oldest GPU rows dropped first."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from telemetry_bus import Frame, Topic

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""300,000 simulated GPUs make 60 MiB at once; a node of 8 makes some 5 KiB a second."""
QUEUE_FRAMES_MAX = 64
"""Beside those that are on their way: six seconds at the fastest pace, ten readings a second, which is more than an
answer takes where the bus has just gone away. More waits only where the spool's disk fails too."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that a bound forced out."""

    rows: int
    simulated: bool


class Waiting(NamedTuple):
    """A frame that waits, and the bytes that it holds."""

    topic: Topic
    frame: Frame
    size: int


class FrameQueue:
    """One reader, many writers, all in one loop. ``put`` never waits."""

    def __init__(self, frames_max: int = QUEUE_FRAMES_MAX, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._frames_max, self._bytes_max = frames_max, bytes_max
        self._events: deque[Waiting] = deque()
        self._rows: deque[Waiting] = deque()
        self._bytes = 0
        self._held: list[Waiting] = []
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._events) + len(self._rows)

    def put(self, topic: Topic, frame: Frame) -> list[Dropped]:
        """Let ``frame`` wait; return what had to go for it."""
        # Columns of nulls share their memory, which is counted once; and it takes a fiftieth of the time of nbytes.
        waiting = Waiting(topic, frame, frame.batch.get_total_buffer_size())
        (self._events if topic is Topic.EVENTS else self._rows).append(waiting)
        self._bytes += waiting.size
        self._idle.clear()
        self._changed.set()
        dropped = []
        # One frame larger than the bound is still let through: it is the newest.
        while len(self) > 1 and (len(self) > self._frames_max or self._bytes > self._bytes_max):
            dropped.append(self._drop(self._rows or self._events))
        return dropped

    def clear(self) -> list[Dropped]:
        """Drop everything, what was taken and is not done included."""
        for held in self._held:
            self._rows.append(held)
            self._bytes += held.size
        self._held.clear()
        dropped = [self._drop(lane) for lane in (self._events, self._rows) for _ in range(len(lane))]
        self._idle.set()
        return dropped

    async def take(self) -> Waiting:
        """Take the next frame out, waiting for one; say :meth:`done` of it afterwards. Several may be out."""
        while not len(self):
            self._changed.clear()
            await self._changed.wait()
        taken = (self._events or self._rows).popleft()
        self._held.append(taken)
        self._bytes -= taken.size
        self._idle.clear()
        return taken

    def done(self, taken: Waiting) -> None:
        """It needs no more care."""
        self._held = [held for held in self._held if held is not taken]
        if not (len(self) or self._held):
            self._idle.set()

    async def drained(self) -> None:
        """Wait until nothing waits and nothing is on its way."""
        await self._idle.wait()

    def _drop(self, lane: deque[Waiting]) -> Dropped:
        gone = lane.popleft()
        self._bytes -= gone.size
        rows = gone.frame.rows
        simulated = bool(rows) and bool(gone.frame.batch.column("simulated")[0].as_py())
        return Dropped(rows, simulated)
