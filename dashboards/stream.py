"""What every browser is sent: each event is encoded once, and the same bytes go to all of them.

Events of one moment go out as one piece. A piece may belong to a *channel* (a choice of the heatmap): then it goes to
those who look at that channel, and none is made for a channel that nobody looks at.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from telemetry_bus.fanout import ReadersFull
from telemetry_bus.json_text import dumps
from telemetry_bus.ring import Ring, RingClosed, RingReader, Skipped

CLIENTS_MAX = 1_000
"""A thousand walls: one more is told 503. Each holds a socket and some 10 KiB."""
RING_BYTES = 8 * 1024 * 1024
"""A minute of the largest fleet's page and heatmap; who is behind that is moved forward and given everything anew."""
HEARTBEAT_SECONDS = 5.0
"""A comment is sent after so long without an event, so that a dead connection is found from both ends."""
HEARTBEAT = b": alive\n\n"

Event = tuple[str, Any]
"""A name and its data."""
Snapshot = Callable[[str], bytes]
"""Everything that is known, for a client who looks at a channel."""


def encoded(event: str, data: Any, number: int | None = None) -> bytes:
    """One server-sent event. ``number`` becomes its id."""
    head = f"event: {event}\n" if number is None else f"id: {number}\nevent: {event}\n"
    return f"{head}data: {dumps(data)}\n\n".encode()


class Broadcast:
    """Sends events to any number of clients. ``clients`` are open now, ``watched`` counts them by channel; ``skipped``
    events were not sent to slow ones."""

    def __init__(self, clients_max: int = CLIENTS_MAX, ring_bytes: int = RING_BYTES) -> None:
        self.clients = 0
        self.skipped = 0
        self.watched: Counter[str] = Counter()
        self._clients_max = clients_max
        self._ring: Ring[tuple[str, bytes]] = Ring(ring_bytes)

    @property
    def end(self) -> int:
        """The number of the next piece: it grows with each."""
        return self._ring.end

    def send(self, event: str, data: Any) -> None:
        """Encode ``data`` as JSON and let every client have it."""
        self.send_together([(event, data)])

    def send_together(self, events: Sequence[Event], channel: str = "") -> None:
        """Let every client, or every one of ``channel``, have ``events`` in one piece: a client is woken once."""
        number = self._ring.end
        payload = b"".join(encoded(event, data, number) for event, data in events)
        if payload:
            self._ring.append((channel, payload), len(payload))

    def close(self) -> None:
        """Let every client's stream end."""
        self._ring.close()

    def room(self) -> None:
        """Raise :class:`ReadersFull` if no further client is let in just now."""
        if self.clients >= self._clients_max:
            raise ReadersFull(self._clients_max)

    async def events(self, snapshot: Snapshot, channel: str = "") -> AsyncGenerator[bytes, None]:
        """What one more client of ``channel`` is sent: a snapshot, then events. Close it when the client is gone.

        A client that was skipped is told so and gets a new snapshot. Raises :class:`ReadersFull`.
        """
        self.room()
        self.clients += 1
        self.watched[channel] += 1
        reader = RingReader(self._ring, self._ring.end)
        try:
            yield snapshot(channel)
            while True:
                item = await self._next(reader)
                if isinstance(item, Skipped):
                    self.skipped += item.count
                    reader.position = self._ring.end
                    yield encoded("skipped", {"count": item.count}) + snapshot(channel)
                elif item[0] in ("", channel):
                    yield item[1]
        except RingClosed:
            return
        finally:
            self.clients -= 1
            self.watched[channel] -= 1
            self.watched += Counter()  # Forget channels that nobody looks at.

    async def _next(self, reader: RingReader[tuple[str, bytes]]) -> tuple[str, bytes] | Skipped:
        if reader.position < self._ring.end:
            return await reader.next()
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                return await reader.next()
        except TimeoutError:
            return "", HEARTBEAT
