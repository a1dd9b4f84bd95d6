"""What a role publishes is durable when the call returns, and ticks stand on a grid, in virtual time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from telemetry_bus import BusUnavailable, Earliest, Frame, FrameMaker, Intake, Topic
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.publisher import RETRY_MAX_SECONDS, publish_frame, publish_until_durable, tick_for_ever
from telemetry_bus.runtime.clock import ManualClock

GUARD_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


class Refusing(EmbeddedBus):
    """The real bus, which refuses as often as it is told and may take its time."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        super().__init__(folder, clock)
        self.clock, self.refuse, self.takes_seconds = clock, 0, 0.0

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Publish, or refuse."""
        self.clock.advance(self.takes_seconds)
        if self.refuse > 0:
            self.refuse -= 1
            raise BusUnavailable(self.url, "publish", OSError("away"))
        return await super().publish(topic, payloads, key)

    async def frames(self, topic: Topic) -> list[Frame]:
        """Every frame of `topic`, as a reader takes it."""
        intake, frames = Intake(), list[Frame]()
        async with self.subscribe([topic], Earliest()) as subscription:
            while not await subscription.caught_up():
                async for records in subscription:
                    frames += [taken.frame for taken in map(intake.take, records) if taken.frame is not None]
                    break
        assert intake.ledger.outstanding == 0
        return frames


class Sleeper:
    """A `sleep` in virtual time, which ends its caller after so many sleeps."""

    def __init__(self, clock: ManualClock, sleeps: int) -> None:
        self.clock, self.left = clock, sleeps
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.slept.append(seconds)
        self.clock.advance(seconds)
        self.left -= 1
        if not self.left:
            raise asyncio.CancelledError


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Refusing]:
    """Return an empty bus on a clock that stands."""
    async with asyncio.timeout(GUARD_SECONDS), Refusing(tmp_path / "bus", ManualClock()) as bus:
        yield bus


def event(maker: FrameMaker, now: float) -> Frame:
    """A frame of one row."""
    return maker.make("event/1", {"time": [now], "kind": ["job_start"], "simulated": [False]}, now)


async def ticks_of(bus: Refusing, count: int) -> list[float]:
    """The times of the ticks of a role that ticked `count` times or tried to."""
    start = bus.clock.now()
    with contextlib.suppress(asyncio.CancelledError):
        await tick_for_ever(bus, bus.clock, "node/ticks", Sleeper(bus.clock, count))
    return [round(float(frame.times()[0]) - start, 6) for frame in await bus.frames(Topic.TICKS)]


async def test_a_frame_is_published_again_until_it_is_durable(bus: Refusing) -> None:
    """However often the bus refuses, the call ends with the frame on it, once, waiting longer each time to a bound."""
    bus.refuse, sleeper = 12, Sleeper(bus.clock, -1)
    frame = event(FrameMaker("node/x"), bus.clock.now())
    await publish_until_durable(bus, Topic.EVENTS, frame, bus.clock, sleeper)
    assert len(await bus.frames(Topic.EVENTS)) == 1
    assert len(sleeper.slept) == 12
    assert all(0 < seconds <= RETRY_MAX_SECONDS for seconds in sleeper.slept)
    assert min(sleeper.slept[-4:]) > max(sleeper.slept[:3])


async def test_what_is_sent_again_is_stamped_again(bus: Refusing) -> None:
    """A wait for the bus must not look like a wrong clock: the stamp of sending is that of the try that succeeded."""
    bus.refuse = 12
    started = bus.clock.now()
    frame = event(FrameMaker("node/x"), started)
    await publish_until_durable(bus, Topic.EVENTS, frame, bus.clock, Sleeper(bus.clock, -1))
    (kept,) = await bus.frames(Topic.EVENTS)
    assert kept.manifest[0].sent == pytest.approx(bus.clock.now(), abs=1e-3)
    assert bus.clock.now() > started + 5.0
    assert kept.times()[0] == started


async def test_waiting_for_the_bus_can_be_cancelled(bus: Refusing) -> None:
    """A role that ends does not wait for a bus that is away."""
    bus.refuse = 10**9
    frame = event(FrameMaker("node/x"), bus.clock.now())
    waiting = asyncio.create_task(publish_until_durable(bus, Topic.EVENTS, frame, bus.clock))
    while bus.refuse > 10**9 - 2 and not waiting.done():
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_who_has_a_better_plan_than_waiting_is_told_at_once(bus: Refusing) -> None:
    """`publish_frame` tries once."""
    bus.refuse = 1
    with pytest.raises(BusUnavailable):
        await publish_frame(bus, Topic.EVENTS, event(FrameMaker("node/x"), bus.clock.now()))
    assert bus.refuse == 0


async def test_ticks_stand_on_a_grid_that_does_not_drift(bus: Refusing) -> None:
    """The time that publishing takes is no part of the interval."""
    bus.takes_seconds = 0.25
    assert await ticks_of(bus, 10) == [float(second) for second in range(10)]


async def test_a_tick_that_is_refused_is_skipped_and_missed_by_nobody(bus: Refusing) -> None:
    """The ticks after it have their place on the grid, and no reader counts a lost frame."""
    bus.refuse = 2
    assert await ticks_of(bus, 5) == [2.0, 3.0, 4.0]


async def test_ticks_that_were_due_during_a_pause_are_left_out(bus: Refusing) -> None:
    """A publish that hung for five seconds is followed by no burst, and moves no grid."""
    bus.takes_seconds = 5.3

    class Hanging(Sleeper):
        async def __call__(self, seconds: float) -> None:
            bus.takes_seconds = 0.0
            await super().__call__(seconds)

    start = bus.clock.now()
    with contextlib.suppress(asyncio.CancelledError):
        await tick_for_ever(bus, bus.clock, "node/ticks", Hanging(bus.clock, 4))
    times = [round(float(frame.times()[0]) - start, 6) for frame in await bus.frames(Topic.TICKS)]
    assert times == [0.0, 6.0, 7.0, 8.0]
