"""A ring of the newest items, bounded in bytes, that any number of readers walk, each at its own pace.

Who is so slow that the ring has moved past him is moved forward and told how many items he skipped; nobody waits for
him.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from telemetry_bus.errors import BusError

Item = TypeVar("Item")


class RingClosed(BusError):
    """The ring that a reader waited on was closed."""

    def __init__(self) -> None:
        super().__init__("the fan-out was closed: nothing more will come.")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A slow reader was moved forward past ``count`` items (1 or more), which it will not get."""

    count: int


class Ring(Generic[Item]):
    """The newest items, bounded in bytes. Items are numbered from 0; ``first`` and ``end`` delimit what is kept.

    The newest item is kept whatever its size.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self.first = 0
        self.closed = False
        self._items: deque[tuple[Item, int]] = deque()
        self._more = asyncio.Event()

    @property
    def end(self) -> int:
        """The number that the next item will have."""
        return self.first + len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return (item for item, _size in self._items)

    def __getitem__(self, number: int) -> Item:
        return self._items[number - self.first][0]

    def append(self, item: Item, size: int) -> list[Item]:
        """Add ``item`` of ``size`` bytes and wake who waits; what was dropped beyond the bound, oldest first."""
        self._items.append((item, size))
        self.bytes_held += size
        dropped = []
        while self.bytes_held > self.bytes_max and len(self._items) > 1:
            oldest, freed = self._items.popleft()
            dropped.append(oldest)
            self.bytes_held -= freed
            self.first += 1
        self._wake()
        return dropped

    def close(self) -> None:
        """Let waiting readers end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        # One event per generation: who waits holds the old one, so nobody can miss the change or has to clear it.
        self._more.set()
        self._more = asyncio.Event()

    async def wait_past(self, number: int) -> None:
        """Wait until item ``number`` has been added. Raises :class:`RingClosed` if it never will be."""
        while number >= self.end:
            if self.closed:
                raise RingClosed
            await self._more.wait()


class RingReader(Generic[Item]):
    """One reader of a ring, standing before item ``position``."""

    def __init__(self, ring: Ring[Item], position: int) -> None:
        self._ring = ring
        self.position = position

    async def next(self) -> Item | Skipped:
        """The next item, or how many were skipped. Raises :class:`RingClosed`."""
        if self.position >= self._ring.end:
            await self._ring.wait_past(self.position)
        skipped = self._ring.first - self.position
        if skipped > 0:
            self.position = self._ring.first
            return Skipped(skipped)
        item = self._ring[self.position]
        self.position += 1
        return item
