"""How a role publishes: frames in, durable when the call returns, whatever the bus goes through meanwhile."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from telemetry_bus.bus import Bus
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.frames import Frame, FrameMaker, encode
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

RETRY_FIRST_SECONDS = 0.05
RETRY_MAX_SECONDS = 2.0
"""A bus that comes back is found within two seconds."""
TICK_SECONDS = 1.0

Sleep = Callable[[float], Awaitable[None]]

_log = logging.getLogger(__name__)


async def publish_frame(bus: Bus, topic: Topic, frame: Frame) -> None:
    """Publish once; raises :class:`BusUnavailable` where the caller has a better plan than waiting."""
    await bus.publish(topic, [encode(frame)])


async def publish_until_durable(
    bus: Bus, topic: Topic, frame: Frame, clock: Clock, sleep: Sleep = asyncio.sleep
) -> None:
    """Publish, again and again while the bus is away, stamped anew each time. Only success or cancellation ends it."""

    async def send(stamped: Frame) -> None:
        await publish_frame(bus, topic, stamped)

    await until_durable(send, frame, clock, sleep)


async def until_durable(
    send: Callable[[Frame], Awaitable[object]],
    frame: Frame,
    clock: Clock,
    sleep: Sleep = asyncio.sleep,
    on_retry: Callable[[], None] = lambda: None,
) -> None:
    """``send`` the frame, again and again while that raises :class:`BusUnavailable`. The one such loop there is.

    Each try is stamped anew by what has passed: a reader holds ``sent`` against the bus's clock, and a wait is no
    wrong clock. (Not by the wall clock: a run may be another machine's, with a clock of its own.)
    """
    wait, began, stamped = RETRY_FIRST_SECONDS, clock.monotonic(), frame
    while True:
        try:
            await send(stamped)
            return
        except BusUnavailable as error:
            on_retry()
            _log.warning("a frame of %s waits %.2f s: %s", frame.schema_id, wait, error)
        await sleep(wait * random.uniform(0.5, 1.0))  # jitter: many publishers do not come back at once
        wait = min(wait * 2, RETRY_MAX_SECONDS)
        passed = clock.monotonic() - began
        stamped = Frame(
            frame.schema_id, frame.batch, tuple(replace(run, sent=run.sent + passed) for run in frame.manifest)
        )


async def tick_for_ever(bus: Bus, clock: Clock, source: str, sleep: Sleep = asyncio.sleep) -> None:
    """Publish the bus's clock once a second, on a grid that does not drift.

    A tick that cannot be published is skipped, and its number is given to the next one: nobody misses it. What was
    due during a pause (a bus that hung, a machine that slept) is left out: ticks never come in a burst.
    """
    maker = FrameMaker(source)
    due = clock.monotonic()
    while True:
        now = clock.now()
        frame = maker.make("tick/1", {"time": [now]}, now)
        try:
            await publish_frame(bus, Topic.TICKS, frame)
        except BusUnavailable as error:
            maker.seq = frame.manifest[0].seq
            _log.warning("no tick: %s", error)
        missed = max(0.0, (clock.monotonic() - due) // TICK_SECONDS)
        due += (missed + 1) * TICK_SECONDS
        await sleep(max(0.0, due - clock.monotonic()))
