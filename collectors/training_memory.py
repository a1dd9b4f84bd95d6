"""The memory that SDKs may take: what waits for the bus, and what is still on its way through the socket.

The two are apart, so that a peer that begins messages and does not end them takes nothing from those that do.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

HELD_BYTES_MAX = 32 * 1024 * 1024
"""JSON bytes that are held while the bus is slow or away; parsed, a message takes three to five times that. A rank has
at most 1.5 MiB under way for each stream, so that a node of 16 ranks is read without a pause; beyond it, connections
wait."""
CONNECTION_BYTES_MAX = 6 * 1024 * 1024
"""Of these, what one connection may hold: an SDK has at most 1.5 MiB under way for each of three streams."""
UNFINISHED_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of messages whose end has not come: 64 of the longest. On one machine a message is whole within a millisecond,
so that a node of 16 ranks has some 1.5 MiB here when all of them write at once."""


class ByteBudget:
    """Bytes that may be held at once. Who asks for more than is left waits until enough has been given back."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._changed = asyncio.Condition()

    async def take(self, size: int) -> None:
        """Take ``size`` bytes, waiting for room; a size beyond the whole budget waits until nothing else is held."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held == 0 or self.held + size <= self._most)
            self.held += size

    async def give_back(self, size: int) -> None:
        """Give back what was taken."""
        async with self._changed:
            self.held -= size
            self._changed.notify_all()


class Unfinished:
    """One message that is being read."""

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self.data = bytearray()
        self.sent_away = False
        """Whether it had to make room for others."""
        self._deadline = deadline

    def send_away(self) -> None:
        """End the reading at once, as its deadline would."""
        self.sent_away = True
        if not self._deadline.expired():  # it may have passed in this very turn of the loop
            self._deadline.reschedule(asyncio.get_running_loop().time())


class Arrivals:
    """The messages that are being read, oldest first, and what they hold. At the limit the oldest is given up: it had
    the most time to be whole."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most
        self._unfinished: dict[Unfinished, None] = {}

    @contextmanager
    def reading(self, deadline: asyncio.Timeout) -> Iterator[Unfinished]:
        """Hold a message while it is read, until ``deadline`` at the latest."""
        message = Unfinished(deadline)
        self._unfinished[message] = None
        try:
            yield message
        finally:
            self._forget(message)

    def add(self, message: Unfinished, data: bytes) -> None:
        """Append what has come of ``message``. Raises ``TimeoutError`` for one that was given up."""
        if message.sent_away:
            raise TimeoutError
        message.data += data
        self.held += len(data)
        while self.held > self._most:
            oldest = next(iter(self._unfinished))
            oldest.send_away()
            self._forget(oldest)

    def _forget(self, message: Unfinished) -> None:
        if message in self._unfinished:
            del self._unfinished[message]
            self.held -= len(message.data)
