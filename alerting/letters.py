"""Deliveries that are sent without an outbox: what a gateway has on its way to receivers, in memory.

Each is tried by the rules of the outbox (:class:`~alerting.attempt.Courier`) until it is taken, refused for good, or
nobody has asked for it in a while. It is no one's caller who sends: a reporter that goes away ends nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Self

from alerting.attempt import Courier
from alerting.deliver import TRIES_AT_ONCE
from alerting.delivery import Delivery, DeliveryState, Mark
from alerting.receivers import Receiver
from telemetry_bus.runtime.clock import Clock

LETTERS_ON_THEIR_WAY_MAX = 1000
"""Some 5 KB each with its task: 5 MB. One more is not begun until somebody asks for it again."""
KEEP_TRYING_SECONDS = 900.0
"""For so long after it was last asked for a letter is tried. By then the bus is back, and the alert role sends it."""
REFUSED_AGAIN_SECONDS = 30.0
"""What was refused for good is tried again when it is asked for, for a person may have mended the receiver, but not
sooner: a hundred nodes report the same trouble, each again and again."""


@dataclass(slots=True, eq=False)
class Letter:
    """A delivery on its way to its receiver. ``error`` says what came of the last try; times are monotonic."""

    delivery: Delivery
    state: DeliveryState = DeliveryState.PENDING
    error: str = "it has not been tried yet"
    until: float = 0.0
    ended: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has it."""
        return self.state is DeliveryState.DELIVERED

    def take(self, mark: Mark) -> float:
        """Note what came of a try; return for how long to wait before the next one."""
        wait = mark.waited_seconds - self.delivery.waited_seconds
        self.state, self.error = mark.state, mark.last_error or "it was taken"
        self.delivery = replace(self.delivery, attempts=mark.attempts, waited_seconds=mark.waited_seconds)
        return wait


@dataclass(slots=True)
class Letters:
    """Sends letters. Used inside ``async with``; ``receivers`` are opened here."""

    receivers: Mapping[str, Receiver]
    courier: Courier
    clock: Clock
    on_their_way: set[Letter] = field(default_factory=set)
    _places: dict[str, asyncio.Semaphore] = field(init=False)
    _tasks: asyncio.TaskGroup | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self._places = {name: asyncio.Semaphore(TRIES_AT_ONCE) for name in self.receivers}

    async def __aenter__(self) -> Self:
        """Open the receivers."""
        async with AsyncExitStack() as stack:
            for receiver in self.receivers.values():
                await stack.enter_async_context(receiver)
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop. What is on its way is forgotten here: it is sent under its id by whoever has it next."""
        await self._stack.aclose()

    def _stop(self) -> None:
        self._tasks = None
        for letter in self.on_their_way:
            if letter.task is not None:
                letter.task.cancel()

    async def send(self, letters: Iterable[Letter], seconds: float) -> None:
        """Begin, or go on with, ``letters`` and wait up to ``seconds`` until each is taken or refused."""
        for letter in letters:
            self._begin(letter)
        going = [letter.task for letter in letters if letter.task is not None and letter in self.on_their_way]
        if going:
            await asyncio.wait(going, timeout=seconds)

    def _begin(self, letter: Letter) -> None:
        now = self.clock.monotonic()
        letter.until = now + KEEP_TRYING_SECONDS
        if letter.is_taken or letter in self.on_their_way:
            return
        if letter.state is DeliveryState.DEAD:
            if now - letter.ended < REFUSED_AGAIN_SECONDS:
                return
            letter.state = DeliveryState.PENDING
        if self._tasks is None or len(self.on_their_way) >= LETTERS_ON_THEIR_WAY_MAX:
            letter.error = f"it waits: {len(self.on_their_way)} others are on their way"
            return
        self.on_their_way.add(letter)
        letter.task = self._tasks.create_task(self._try(letter), name=f"page {letter.delivery.id}")

    async def _try(self, letter: Letter) -> None:
        try:
            while letter.state is DeliveryState.PENDING and self.clock.monotonic() < letter.until:
                async with self._places[letter.delivery.receiver]:
                    wait = letter.take(await self.courier.attempt(letter.delivery))
                if letter.state is DeliveryState.PENDING:
                    await asyncio.sleep(wait)
        finally:
            letter.ended = self.clock.monotonic()
            self.on_their_way.discard(letter)
