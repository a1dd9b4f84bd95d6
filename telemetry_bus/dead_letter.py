"""Where refused bytes go: the dead-letter topic, with the reason and a bound on how much of it there may be."""

from telemetry_bus.bus import Bus
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.intake import Refusal
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

PAYLOAD_BYTES_MAX = 64 * 1024
"""Enough to see what it was; a 16 MiB frame of garbage is not kept whole."""
LETTERS_PER_MINUTE_MAX = 600
"""Ten a second tell everything about a stream of garbage: with full payloads that is 38 MiB a minute at most, and the
topic's own bound holds behind it. What goes beyond is counted only."""


class DeadLetters:
    """Writes refusals to the dead-letter topic. A reader never waits for it longer than for one publish."""

    def __init__(self, bus: Bus, clock: Clock, source: str) -> None:
        self._bus, self._clock = bus, clock
        self._maker = FrameMaker(source)
        self._minute = clock.monotonic()
        self._room = LETTERS_PER_MINUTE_MAX
        self.written = 0
        self.only_counted = 0

    async def put(self, refusal: Refusal) -> None:
        """Keep ``refusal``; where the bus is away or the minute's room is used up it is only counted."""
        if not self._has_room():
            self.only_counted += 1
            return
        record, now = refusal.record, self._clock.now()
        frame = self._maker.make(
            "dead/1",
            {
                "time": [now],
                "topic": [record.topic.value],
                "offset": [record.offset],
                "reason": [refusal.reason.value],
                "message": [refusal.message],
                "payload_bytes": [len(record.payload)],
                "payload": [record.payload[:PAYLOAD_BYTES_MAX]],
                "partition": [record.partition],
            },
            now,
        )
        try:
            await self._bus.publish(Topic.DEAD_LETTER, [encode(frame)])
            self.written += 1
        except BusUnavailable:
            if self._maker.seq == frame.manifest[0].seq + 1:
                self._maker.seq -= 1  # nobody got it: no reader shall miss it
            self.only_counted += 1

    def _has_room(self) -> bool:
        now = self._clock.monotonic()
        if now - self._minute >= 60.0:
            self._minute, self._room = now, LETTERS_PER_MINUTE_MAX
        self._room -= 1
        return self._room >= 0
