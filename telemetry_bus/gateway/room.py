"""How many bytes may be under way at once: of one link, and of all of them together."""

import asyncio
from collections import deque


class Room:
    """A bound on bytes. ``take`` says whether there is room; ``wait_for`` waits its turn for it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if they are free. What is larger than the bound itself may go alone."""
        if self._waiting or (self.used and self.used + size > self.bytes_max):
            return False
        self.used += size
        return True

    async def wait_for(self, size: int) -> None:
        """Take ``size`` bytes, after those who waited before."""
        if self.take(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size)  # it was given and will not be used
            else:
                self._next()
            raise

    def give_back(self, size: int) -> None:
        """Free ``size`` bytes, and let those have them who wait longest."""
        self.used -= size
        self._next()

    def _next(self) -> None:
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if self.used and self.used + wanted > self.bytes_max:
                    return
                self.used += wanted
                turn.set_result(None)
            self._waiting.popleft()
