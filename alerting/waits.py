"""Longer and longer waits between tries of what is away."""

import asyncio

RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Waits before the bus or the store is tried again; the last one is repeated."""


class Waits:
    """Each wait is longer than the one before, until :meth:`reset`."""

    def __init__(self) -> None:
        self._taken = 0

    async def wait(self) -> None:
        """Wait for the next time."""
        seconds = RETRY_SECONDS[min(self._taken, len(RETRY_SECONDS) - 1)]
        self._taken += 1
        await asyncio.sleep(seconds)

    def reset(self) -> None:
        """It works again."""
        self._taken = 0
