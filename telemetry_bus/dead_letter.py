"""Where refused bytes go: the dead-letter topic, with the reason and a bound on how much of it there may be."""

from collections.abc import Sequence
from typing import Protocol

from telemetry_bus.errors import BusUnavailable, FrameRefused
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.intake import Refusal
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

PAYLOAD_BYTES_MAX = 64 * 1024
"""Enough to see what it was; a 16 MiB frame of garbage is not kept whole."""
LETTERS_PER_MINUTE_MAX = 600
"""Ten a second tell everything about a stream of garbage: with full payloads that is 38 MiB a minute at most, and the
topic's own bound holds behind it. What goes beyond is counted only."""


class Publishing(Protocol):
    """A bus, or an outlet."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> object:
        """Make ``payloads`` durable; raises :class:`BusUnavailable`."""
        ...


class DeadLetters:
    """Writes refusals to the dead-letter topic. A reader never waits for it longer than for one publish."""

    def __init__(self, bus: Publishing, clock: Clock, source: str) -> None:
        self._bus, self._clock = bus, clock
        self._maker = FrameMaker(source)
        self._minute = clock.monotonic()
        self._room = LETTERS_PER_MINUTE_MAX
        self.written = 0
        self.only_counted = 0

    async def put(self, refusal: Refusal) -> None:
        """Keep ``refusal``; where the bus is away or the minute's room is used up it is only counted."""
        record = refusal.record
        await self.keep(record.topic.value, record.offset, refusal.reason.value, refusal.message, record.payload)

    async def keep(
        self,
        topic: str,
        offset: int | None,
        reason: str,
        message: str,
        payload: bytes,
        payload_bytes: int | None = None,
    ) -> None:
        """Keep what was refused before it had a record: its ``topic`` is what the sender said, there is no offset.

        ``payload_bytes`` is how many there were, where ``payload`` is only their beginning.
        """
        if not self.has_room():
            self.only_counted += 1
            return
        now = self._clock.now()
        frame = self._maker.make(
            "dead/1",
            {
                "time": [now],
                "topic": [topic],
                "offset": [offset],
                "reason": [reason],
                "message": [message],
                "payload_bytes": [len(payload) if payload_bytes is None else payload_bytes],
                "payload": [payload[:PAYLOAD_BYTES_MAX]],
            },
            now,
        )
        try:
            await self._bus.publish(Topic.DEAD_LETTER, [encode(frame)])
            self.written += 1
        except (BusUnavailable, FrameRefused):
            if self._maker.seq == frame.manifest[0].seq + 1:
                self._maker.seq -= 1  # nobody got it: no reader shall miss it
            self.only_counted += 1

    def has_room(self) -> bool:
        """Whether this minute has room for one more letter; it is taken."""
        now = self._clock.monotonic()
        if now - self._minute >= 60.0:
            self._minute, self._room = now, LETTERS_PER_MINUTE_MAX
        self._room -= 1
        return self._room >= 0
