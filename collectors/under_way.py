"""How much is under way, and waiting until nothing is."""

import asyncio


class UnderWay:
    """Counts what is under way, and lets others wait until nothing is."""

    def __init__(self) -> None:
        self.number = 0
        self._none = asyncio.Event()
        self._none.set()

    async def __aenter__(self) -> None:
        self.number += 1
        self._none.clear()

    async def __aexit__(self, *exc_info: object) -> None:
        self.number -= 1
        if not self.number:
            self._none.set()

    async def none(self, seconds_max: float | None = None) -> None:
        """Wait until nothing is under way, or for so long."""
        try:
            async with asyncio.timeout(seconds_max):
                await self._none.wait()
        except TimeoutError:
            return
