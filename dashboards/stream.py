"""What every browser is sent: each event is encoded once, and the same bytes go to all of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from telemetry_bus.fanout import ReadersFull
from telemetry_bus.json_text import dumps
from telemetry_bus.ring import Ring, RingClosed, RingReader, Skipped

CLIENTS_MAX = 1_000
"""A thousand walls: one more is told 503. Each holds a socket and some 10 KiB."""
RING_BYTES = 8 * 1024 * 1024
"""Ten seconds of the largest fleet's heatmap; who is behind that is moved forward and given everything anew."""
HEARTBEAT_SECONDS = 5.0
"""A comment is sent after so long without an event, so that a dead connection is found from both ends."""
HEARTBEAT = b": alive\n\n"


def encoded(event: str, data: Any, number: int | None = None) -> bytes:
    """One server-sent event. ``number`` becomes its id."""
    head = f"event: {event}\n" if number is None else f"id: {number}\nevent: {event}\n"
    return f"{head}data: {dumps(data)}\n\n".encode()


class Broadcast:
    """Sends events to any number of clients. ``clients`` are open now; ``skipped`` were not sent to slow ones."""

    def __init__(self, clients_max: int = CLIENTS_MAX, ring_bytes: int = RING_BYTES) -> None:
        self.clients = 0
        self.skipped = 0
        self._clients_max = clients_max
        self._ring: Ring[bytes] = Ring(ring_bytes)

    @property
    def end(self) -> int:
        """The number of the next event: it grows with each."""
        return self._ring.end

    def send(self, event: str, data: Any) -> None:
        """Encode ``data`` as JSON and let every client have it."""
        payload = encoded(event, data, self._ring.end)
        self._ring.append(payload, len(payload))

    def close(self) -> None:
        """Let every client's stream end."""
        self._ring.close()

    def room(self) -> None:
        """Raise :class:`ReadersFull` if no further client is let in just now."""
        if self.clients >= self._clients_max:
            raise ReadersFull(self._clients_max)

    async def events(self, snapshot: Callable[[], bytes]) -> AsyncGenerator[bytes, None]:
        """What one more client is sent: a snapshot, then events. Close it when the client is gone.

        A client that was skipped is told so and gets a new snapshot. Raises :class:`ReadersFull`.
        """
        self.room()
        self.clients += 1
        reader = RingReader(self._ring, self._ring.end)
        try:
            yield snapshot()
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        item = await reader.next()
                except TimeoutError:
                    item = HEARTBEAT
                if isinstance(item, Skipped):
                    self.skipped += item.count
                    reader.position = self._ring.end
                    yield encoded("skipped", {"count": item.count}) + snapshot()
                else:
                    yield item
        except RingClosed:
            return
        finally:
            self.clients -= 1
