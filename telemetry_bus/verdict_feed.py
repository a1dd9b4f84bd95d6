"""Verdicts on their way down: from the bus or the gateway above to who hears here, and to who comes a little later."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from telemetry_bus.bus import AtTime, Bus
from telemetry_bus.errors import BusError
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic
from telemetry_bus.verdicts import VALID_SECONDS

KEPT_MAX = 64
"""A verdict has some 2 KiB. One job in a fleet goes bad now and then; in ten minutes 64 is far beyond any such day."""
PAYLOAD_BYTES_MAX = 16 * 1024
"""One verdict; what is larger is none."""
RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)

Hear = Callable[[bytes], None]


class VerdictFeed:
    """Passes each encoded ``verdict/1`` frame on once, and keeps those that may still be valid.

    It believes nothing and checks no signature: the job does. Use it from the event loop only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, bytes]] = deque(maxlen=KEPT_MAX)
        self._listeners: list[Hear] = []
        self.heard = 0
        """Verdicts that were passed on."""

    def to(self, listener: Hear) -> None:
        """Let ``listener`` hear every verdict from now on."""
        self._listeners.append(listener)

    def hear(self, payload: bytes) -> None:
        """Take a verdict from above."""
        if len(payload) > PAYLOAD_BYTES_MAX or payload in self.still_valid():
            return
        self._kept.append((self._clock.monotonic(), payload))
        self.heard += 1
        for listener in self._listeners:
            listener(payload)

    def still_valid(self) -> Sequence[bytes]:
        """Those that were heard within :data:`VALID_SECONDS`, oldest first."""
        since = self._clock.monotonic() - VALID_SECONDS
        return [payload for heard_at, payload in self._kept if heard_at > since]

    async def follow(self, bus: Bus) -> None:
        """Hear what is on ``bus``, until cancelled; while it is away there is nothing to hear."""
        while True:
            try:
                start = AtTime(self._clock.now() - VALID_SECONDS)
                async with bus.subscribe([Topic.VERDICTS], start) as subscription:
                    async for records in subscription:
                        for record in records:
                            self.hear(record.payload)
            except BusError as error:
                _log.debug("no verdict can be heard: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
