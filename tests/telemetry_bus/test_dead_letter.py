"""Dead letters tell what was refused and why, and are bounded, each and per minute."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from telemetry_bus import BusUnavailable, Earliest, Intake, Record, Refusal, Topic
from telemetry_bus.dead_letter import LETTERS_PER_MINUTE_MAX, PAYLOAD_BYTES_MAX, DeadLetters
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.runtime.clock import ManualClock


class Away(EmbeddedBus):
    """The real bus, which can be away."""

    is_away = False

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Publish, or refuse."""
        if self.is_away:
            raise BusUnavailable(self.url, "publish", OSError("away"))
        return await super().publish(topic, payloads, key)


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands."""
    return ManualClock()


@pytest.fixture
async def bus(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Away]:
    """Return an empty bus."""
    async with Away(tmp_path / "bus", clock) as bus:
        yield bus


def refusal(payload: bytes, offset: int = 7) -> Refusal:
    """What the intake says of garbage."""
    (found,) = Intake().take(Record(Topic.TRAIN, 0, offset, 1_700_000_000.0, payload)).refusals
    return found


async def letters_of(bus: EmbeddedBus) -> list[dict[str, Any]]:
    """The rows of the dead-letter topic, read as any topic is."""
    intake, rows = Intake(), list[dict[str, Any]]()
    async with bus.subscribe([Topic.DEAD_LETTER], Earliest()) as subscription:
        while not await subscription.caught_up():
            async for records in subscription:
                for taken in map(intake.take, records):
                    assert taken.frame is not None
                    rows += taken.frame.batch.to_pylist()
                break
    assert intake.ledger.outstanding == 0
    return rows


async def test_a_letter_tells_what_was_refused_where_and_why(bus: Away, clock: ManualClock) -> None:
    """Topic, offset, reason, message, size and bytes are enough to find the sender."""
    letters = DeadLetters(bus, clock, "node/dead")
    await letters.put(refusal(b"no frame at all, but long enough to be one", 42))
    (row,) = await letters_of(bus)
    assert (row["topic"], row["offset"], row["reason"]) == ("telemetry.train", 42, "not_a_frame")
    assert (row["payload"], row["payload_bytes"]) == (b"no frame at all, but long enough to be one", 42)
    assert row["message"]
    assert row["time"].timestamp() == clock.now()
    assert (letters.written, letters.only_counted) == (1, 0)


async def test_of_a_large_payload_the_beginning_is_kept(bus: Away, clock: ManualClock) -> None:
    """A frame of megabytes does not fill the topic; its whole size is told."""
    await DeadLetters(bus, clock, "node/dead").put(refusal(b"x" * (PAYLOAD_BYTES_MAX + 1)))
    (row,) = await letters_of(bus)
    assert (len(row["payload"]), row["payload_bytes"]) == (PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX + 1)


async def test_letters_are_bounded_per_minute(bus: Away, clock: ManualClock) -> None:
    """A stream of garbage is told by the first letters of each minute; the rest is counted."""
    letters, garbage = DeadLetters(bus, clock, "node/dead"), refusal(b"x")
    for _ in range(LETTERS_PER_MINUTE_MAX + 5):
        await letters.put(garbage)
    assert (letters.written, letters.only_counted) == (LETTERS_PER_MINUTE_MAX, 5)
    clock.advance(59.9)
    await letters.put(garbage)
    assert (letters.written, letters.only_counted) == (LETTERS_PER_MINUTE_MAX, 6)
    clock.advance(0.1)
    await letters.put(garbage)
    assert (letters.written, letters.only_counted) == (LETTERS_PER_MINUTE_MAX + 1, 6)


async def test_a_clock_that_is_set_back_does_not_silence_the_letters(bus: Away, clock: ManualClock) -> None:
    """The minute is counted by a clock that never steps."""
    letters, garbage = DeadLetters(bus, clock, "node/dead"), refusal(b"x")
    for _ in range(LETTERS_PER_MINUTE_MAX):
        await letters.put(garbage)
    clock.step(-3600)
    clock.advance(60)
    await letters.put(garbage)
    assert letters.only_counted == 0


async def test_while_the_bus_is_away_letters_are_only_counted(bus: Away, clock: ManualClock) -> None:
    """Whoever reads goes on at once, and nobody misses the letter that was never sent."""
    letters = DeadLetters(bus, clock, "node/dead")
    await letters.put(refusal(b"a"))
    bus.is_away = True
    await letters.put(refusal(b"b"))
    bus.is_away = False
    await letters.put(refusal(b"c"))
    assert [row["payload"] for row in await letters_of(bus)] == [b"a", b"c"]
    assert (letters.written, letters.only_counted) == (2, 1)
