"""A clock that is set during a run: its rows reach every reader at their right time, none is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from collectors.training import TrainingListener
from collectors.training_clock import SenderClock
from telemetry_bus.bus import Record
from telemetry_bus.frames import Frame, encode
from telemetry_bus.intake import Intake
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Client, rows

YEARS = 10 * 365.25 * 86_400
STEPS = [
    pytest.param(-YEARS, id="ten years back"),
    pytest.param(-60.0, id="a minute back"),
    pytest.param(60.0, id="a minute on"),
    pytest.param(YEARS, id="ten years on"),
]


class Job:
    """A training process with a clock of its own, its collector and the reader behind, on one manual clock."""

    def __init__(self, listener: TrainingListener, client: Client, clock: ManualClock, reader: Reader) -> None:
        self.off = 0.0
        """Seconds by which the job's clock is ahead of the bus's."""
        self.listener = listener
        self.reader = reader
        self._client = client
        self._clock = clock
        self._seq = 0

    async def report(self, *waited_since: float) -> None:
        """Send a message of one row of now, behind rows with these stamps, and wait until it is durable."""
        now = self._clock.now() + self.off
        found = [{"time": time, "step": self._seq, "loss": "NaN"} for time in (*waited_since, now)]
        self._client.send(rows(self._seq, *found, sent=now))
        answer = await self._client.answer()
        assert (answer["type"], answer["seq"]) == ("ack", self._seq)
        self._seq += 1

    async def idle(self, seconds: float) -> None:
        """Let time pass while the collector waits for the next message."""
        for _ in range(10):
            await asyncio.sleep(0)
        self._clock.advance(seconds)


class Reader:
    """Stands where the bus is: stamps frames with its time and reads them through the real door."""

    def __init__(self, clock: ManualClock) -> None:
        self.intake = Intake()
        self.ages: list[float] = []
        """Seconds by which each row, as a detector sees it, lies before the bus's clock."""
        self.refused: list[str] = []
        self._clock = clock

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Take a frame, as ``TrainingListener`` wants it taken."""
        now = self._clock.now()
        taken = self.intake.take(Record(topic, 0, 0, now, encode(frame)))
        self.refused += [refusal.message for refusal in taken.refusals]
        if taken.frame is not None:
            self.ages += (now - taken.frame.times()).tolist()


async def with_job(folder: Path, body: Any) -> Reader:
    """Run ``body(job)`` against a listener, and return what the reader saw."""
    clock = ManualClock()
    reader = Reader(clock)
    async with TrainingListener(reader.publish, clock, node="n", unix_path=folder / "c.sock") as listener:
        client = await Client.unix(folder / "c.sock")
        await client.greet()
        await body(Job(listener, client, clock, reader), clock)
        await client.close()
    return reader


@pytest.mark.parametrize("gap", [0.0, 1.0, 70.0], ids=["in a burst", "every second", "rarer than a minute's step"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_clock_that_is_set_during_a_run_costs_no_row(tmp_path: Path, step: float, gap: float) -> None:
    """From the first message after the step on, rows are taken, at their time."""

    async def body(job: Job, clock: ManualClock) -> None:
        for seq in range(40):
            if seq == 20:
                job.off = step
            await job.idle(gap)
            await job.report()

    reader = await with_job(tmp_path, body)
    assert reader.refused == []
    assert reader.ages == pytest.approx([0.0] * 40, abs=1e-3)


@pytest.mark.parametrize("step", STEPS)
async def test_our_own_clock_may_be_set_too(tmp_path: Path, step: float) -> None:
    """The collector's and the bus's clock is set and the job's is not: the rows follow the bus's."""

    async def body(job: Job, clock: ManualClock) -> None:
        for seq in range(40):
            if seq == 20:
                clock.step(step)
                job.off = -step
            await job.idle(1.0)
            await job.report()

    reader = await with_job(tmp_path, body)
    assert reader.refused == []
    assert reader.ages == pytest.approx([0.0] * 40, abs=1e-3)


@pytest.mark.parametrize("step", STEPS)
async def test_rows_that_waited_while_the_clock_was_set_are_taken(tmp_path: Path, step: float) -> None:
    """A NaN that was stamped half a second before the step, and sent after it, is not refused for its old stamp."""

    async def body(job: Job, clock: ManualClock) -> None:
        await job.report()
        await job.idle(1.0)
        stamped = clock.now()
        await job.idle(0.5)
        job.off = step
        await job.report(stamped)
        await job.idle(1.0)
        await job.report()

    reader = await with_job(tmp_path, body)
    assert reader.refused == []
    waited = 60.5 if step == 60.0 else 0.5  # a minute on, it could as well have waited for a minute
    assert reader.ages == pytest.approx([0.0, waited, 0.0, 0.0], abs=1e-3)


async def test_rows_of_a_clock_that_was_set_back_between_two_connections_are_taken(tmp_path: Path) -> None:
    """By how much it was set is not known then; a row from after its own sending is put at its sending."""

    async def body(job: Job, clock: ManualClock) -> None:
        job.off = -YEARS
        await job.report(clock.now())

    reader = await with_job(tmp_path, body)
    assert reader.refused == []
    assert reader.ages == pytest.approx([0.0, 0.0], abs=1e-3)


async def test_a_wrong_clock_is_measured_by_the_message_that_came_soonest() -> None:
    """A message that was held up on our side is late, and no clock that was set back."""
    clock = ManualClock()
    sender = SenderClock(clock)
    assert sender.received(clock.now() + 100.0, clock.monotonic(), 0.0) == 0.0
    sent = clock.now() + 100.0
    clock.advance(60.0)
    assert sender.received(sent + 0.5, clock.monotonic(), 0.0) == 0.0
    assert sender.reading()() == pytest.approx(clock.now() + 100.0)


async def test_messages_under_way_keep_the_clock_that_they_were_sent_by() -> None:
    """What waits for the bus while the clock is set is not moved by the step."""
    clock = ManualClock()
    sender = SenderClock(clock)
    sender.received(clock.now(), clock.monotonic(), 0.0)
    before = sender.reading()
    clock.advance(1.0)
    assert sender.received(clock.now() - 60.0, clock.monotonic(), 0.0) == pytest.approx(-60.0)
    assert (before() - clock.now(), sender.reading()() - clock.now()) == pytest.approx((0.0, -60.0))
