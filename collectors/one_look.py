"""A blocking look in a thread of its own, with a deadline.

Reading ``/proc/PID/environ`` waits for the process's memory lock, which a process that is stuck in a driver may hold
for ever; a counter of a network card waits for the card. Such a look is left alone, as a thread that does not keep this
process from ending; no other is begun while it is stuck.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class OneLook(Generic[T]):
    """At most one look at a time. ``name`` is its thread's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._under_way = False
        """Of a look, not of its thread, which lives on for a moment after it has told."""

    @property
    def stuck(self) -> bool:
        """Whether a look is still under way."""
        return self._under_way

    async def take(self, look: Callable[[], T], seconds: float) -> T:
        """What ``look`` returns or raises. Raises ``TimeoutError`` after ``seconds``, and while an older one is
        stuck."""
        if self.stuck:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                settle = partial(answer.set_result, look())
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                settle = partial(answer.set_exception, error)
            self._under_way = False
            tell(settle)

        def tell(settle: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: None if answer.done() else settle())

        self._under_way = True
        threading.Thread(target=work, name=self._name, daemon=True).start()
        async with asyncio.timeout(seconds):
            return await answer
