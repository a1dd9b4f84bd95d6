"""Time that moves only when a test moves it, and what a collector sees of the world while it does."""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Self

import pyarrow as pa

from collectors.source import Column, EventRow, GpuRows, SourceReading
from telemetry_bus import BusUnavailable, Frame, Topic, decode, encode
from telemetry_bus.runtime.clock import ManualClock

GUARD_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""

TURNS = 5
"""Of the loop: from a sleeper that wakes to the last of those whom it wakes."""
WAITING = frozenset(
    {"VirtualTime.sleep", "Event.wait", "Condition.wait", "Lock.acquire", "Semaphore.acquire", "TaskGroup.__aexit__"}
)


def _waits(task: "asyncio.Task[object]") -> bool:
    """Whether a task waits for time or for another task, and not for a thread."""
    inner: Any = task.get_coro()
    while (deeper := getattr(inner, "cr_await", None)) is not None and hasattr(deeper, "cr_await"):
        inner = deeper
    return getattr(inner, "__qualname__", "") in WAITING


class VirtualTime(ManualClock):
    """A clock whose `sleep` ends when `advance` has come so far."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._fell_asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Sleep in virtual time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.monotonic() + seconds, next(self._order), future))
        self._fell_asleep.set()
        await future

    async def all_asleep(self, sleepers: int) -> None:
        """Wait until `sleepers` tasks sleep."""
        async with asyncio.timeout(GUARD_SECONDS):
            while sum(not future.done() for _, _, future in self._sleepers) < sleepers:
                self._fell_asleep.clear()
                await self._fell_asleep.wait()

    async def pass_by(self, seconds: float, sleepers: int = 1) -> None:
        """Let `seconds` pass, waking who is due, in order, each time waiting until `sleepers` tasks sleep again."""
        await self.all_asleep(sleepers)
        end = self.monotonic() + seconds
        while self._sleepers and self._sleepers[0][0] <= end + 1e-9:
            due, _, future = heapq.heappop(self._sleepers)
            self.advance(max(due - self.monotonic(), 0.0))
            if not future.done():
                future.set_result(None)
                await asyncio.sleep(0)
                await self.all_asleep(sleepers)
        self.advance(max(end - self.monotonic(), 0.0))

    async def drive(self, until: Callable[[], bool], seconds_max: float = 3600.0) -> None:
        """Let time pass, sleeper by sleeper, until `until` says so. While anybody works (with a disk, say) it stands:
        how fast this machine is makes no difference."""
        end = self.monotonic() + seconds_max
        async with asyncio.timeout(GUARD_SECONDS):
            while not until():
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if any(not _waits(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()):
                    await asyncio.sleep(0.0005)
                    continue
                while self._sleepers and self._sleepers[0][2].done():
                    heapq.heappop(self._sleepers)
                if self._sleepers and not until():
                    due, _, future = heapq.heappop(self._sleepers)
                    assert due <= end, f"not so within {seconds_max} s"
                    self.advance(max(due - self.monotonic(), 0.0))
                    future.set_result(None)

    async def drive_for(self, seconds: float) -> None:
        """Let so many seconds pass, sleeper by sleeper."""
        end = self.monotonic() + seconds
        await asyncio.sleep(0)  # a turn for who is about to sleep
        await self.drive(lambda: not self._sleepers or self._sleepers[0][0] > end)
        self.advance(max(end - self.monotonic(), 0.0))


class RecordingBus:
    """A bus that can be away, and keeps the bytes of what was published."""

    def __init__(self) -> None:
        self.away = False
        self.published: list[tuple[Topic, bytes]] = []
        self.tries = 0
        self._changed = asyncio.Event()

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Keep `frame`, or say that the bus is away."""
        self.tries += 1
        if self.away:
            raise BusUnavailable("fake://", "publish", OSError("away"))
        self.published.append((topic, encode(frame)))
        self._changed.set()

    def frames(self, topic: Topic) -> list[Frame]:
        """What was published on `topic`, as a reader sees it."""
        return [decode(payload) for found, payload in self.published if found is topic]

    def count(self, topic: Topic) -> int:
        """How many frames were published on `topic`."""
        return sum(found is topic for found, _ in self.published)

    async def has(self, topic: Topic, frames: int) -> list[Frame]:
        """Wait until there are `frames` frames on `topic`."""
        async with asyncio.timeout(GUARD_SECONDS):
            while len(found := self.frames(topic)) < frames:
                self._changed.clear()
                await self._changed.wait()
        return found


class CountingSource:
    """A source of one GPU whose power is the number of the reading."""

    name = "counting"
    period_seconds: float | None = None
    urgent: asyncio.Event | None = None

    def __init__(self, while_reading: Callable[[int], None] = lambda _: None, events: Sequence[EventRow] = ()) -> None:
        self.readings = 0
        self.open = False
        self._while_reading, self._events = while_reading, list(events)

    async def __aenter__(self) -> Self:
        """Open."""
        self.open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        self.open = False

    async def read(self, now: float) -> SourceReading:
        """One row; the events with the first."""
        del now
        self._while_reading(self.readings)
        power = Column.of("power_watts", [float(self.readings)])
        self.readings += 1
        events, self._events = self._events, []
        rows = GpuRows(
            [("node-1", 1)], power.values.astype("int32") * 0, pa.array(["GPU-0"]), False, {"power_watts": power}
        )
        return SourceReading(rows, events)

    def unreadable(self) -> Sequence[str]:
        """Nothing."""
        return ()
