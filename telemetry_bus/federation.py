"""Several buses read as one: a bus for each region, the first of them *home*.

Everything is written to home; findings, ticks, verdicts and dead letters are read from there. Telemetry is read from
all. Partition ``p`` of bus ``i`` has the number ``i * STRIDE + p`` here, so that no two are alike and home's stay as
they are; a position is committed on the bus that it is of. A bus that is away is tried again on its own, with a growing
wait, and nobody waits for it: it has no ends and no positions meanwhile, and once it is back it is read on from where
it was.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from telemetry_bus.bus import SEPARATOR, WHOLE, Bus, Positions, Slice, Start
from telemetry_bus.errors import BusClosed, BusError, RepeatedBus
from telemetry_bus.federation_reading import (
    ANSWER_SECONDS_MAX,
    BACKOFF_FIRST_SECONDS,
    BACKOFF_MAX_SECONDS,
    EVERYWHERE,
    FederatedSubscription,
    Member,
)
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class BusState:
    """One bus of several: since when (UTC seconds) it is away, and why; ``None`` while it is there."""

    url: str
    away_since: float | None
    problem: str | None


def bus_states(bus: Bus) -> list[BusState]:
    """The state of each bus that ``bus`` is made of, home first; none for a bus that is one."""
    if not isinstance(bus, FederatedBus):
        return []
    return [BusState(member.bus.url, member.away_since, member.problem) for member in bus.members]


class FederatedBus:
    """``buses`` (not yet open, two or more) as one. Home must be there when it is opened; the others may be away."""

    def __init__(self, buses: Sequence[Bus], clock: Clock) -> None:
        urls = [bus.url for bus in buses]
        if repeated := {url for url in urls if urls.count(url) > 1}:
            raise RepeatedBus(min(repeated))
        self.url = SEPARATOR.join(urls)
        self.members = [Member(index, bus, clock) for index, bus in enumerate(buses)]
        self._clock = clock
        self._home = buses[0]
        self._stack = contextlib.AsyncExitStack()
        self._tasks: asyncio.TaskGroup | None = None
        self._opening: list[asyncio.Task[None]] = []
        self._subscriptions: set[FederatedSubscription] = set()
        self._pending: dict[tuple[int, str], dict[Topic, dict[int, int]]] = {}

    async def __aenter__(self) -> Self:
        """Open home, and the others within :data:`ANSWER_SECONDS_MAX` or whenever they can be opened."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._home)
            self.members[0].opened.set()
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            tried = [asyncio.Event() for _ in self.members[1:]]
            self._opening = [
                self._tasks.create_task(_keep_open(member, event), name=f"bus {member.index}")
                for member, event in zip(self.members[1:], tried, strict=True)
            ]
            stack.callback(self._stop_opening)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    await asyncio.gather(*(event.wait() for event in tried))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close all of them; who still reads is told."""
        self._tasks = None
        for subscription in self._subscriptions:
            subscription.close()
        await self._stack.aclose()

    def _stop_opening(self) -> None:
        for task in self._opening:
            task.cancel()

    def _opened(self, action: str) -> asyncio.TaskGroup:
        if self._tasks is None:
            raise BusClosed(self.url, action)
        return self._tasks

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Append ``payloads`` at home."""
        self._opened(f"publish to {topic}")
        return await self._home.publish(topic, payloads, key)

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AsyncIterator[FederatedSubscription]:
        """Read telemetry from all buses, each in its own order, and everything else from home."""
        tasks = self._opened("read")
        starts = {topic: start[topic] if isinstance(start, Mapping) else start for topic in topics}
        members = self.members if EVERYWHERE.intersection(topics) else self.members[:1]
        subscription = FederatedSubscription(self.url, members, starts, part, self._clock.now())
        self._subscriptions.add(subscription)
        try:
            await subscription.begin(tasks)
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.end()

    async def commit(self, group: str, positions: Positions) -> None:
        """Remember each position on the bus that it is of; what a bus that is away should know it is told later."""
        self._opened(f"commit for {group}")
        for member in self.members[1:]:
            pending = self._pending.setdefault((member.index, group), {})
            for topic, offsets in member.own_positions(positions).items():
                pending.setdefault(topic, {}).update(offsets)
        if own := self.members[0].own_positions(positions):
            await self._home.commit(group, own)
        await asyncio.gather(*(self._commit_pending(member, group) for member in self.members[1:]))

    async def _commit_pending(self, member: Member, group: str) -> None:
        pending = self._pending.pop((member.index, group), None)  # another commit under way may have taken it
        if pending and await member.ask(lambda bus: _done(bus, group, pending)) is None:
            later = self._pending.setdefault((member.index, group), {})
            for topic, offsets in pending.items():
                later[topic] = offsets | later.get(topic, {})

    async def committed(self, group: str) -> Positions:
        """How far ``group`` has come on the buses that can be reached."""
        self._opened("read")
        found = {topic: dict(offsets) for topic, offsets in (await self._home.committed(group)).items()}
        answers = await asyncio.gather(*(member.ask(lambda bus: bus.committed(group)) for member in self.members[1:]))
        for member, answer in zip(self.members[1:], answers, strict=True):
            for topic, offsets in (answer or {}).items():
                if topic in EVERYWHERE:
                    found.setdefault(topic, {}).update(member.numbered(offsets))
        return found

    async def identity(self) -> str:
        """Which log home is."""
        return await self._home.identity()

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """The ends of every partition on the buses that can be reached."""
        self._opened("read")
        found = dict(await self._home.ends(topic))
        others = self.members[1:] if topic in EVERYWHERE else []
        answers = await asyncio.gather(*(member.ask(lambda bus: bus.ends(topic)) for member in others))
        for member, answer in zip(others, answers, strict=True):
            found |= member.numbered(answer or {})
        return found


async def _keep_open(member: Member, tried: asyncio.Event) -> None:
    """Open the member's bus, however often that takes, and keep it open until cancelled."""
    wait_seconds = BACKOFF_FIRST_SECONDS
    while True:
        try:
            async with member.bus:
                member.is_back()
                member.opened.set()
                tried.set()
                await asyncio.Event().wait()
        except BusError as error:
            member.is_away(error)
            tried.set()
        await asyncio.sleep(wait_seconds)
        wait_seconds = min(2 * wait_seconds, BACKOFF_MAX_SECONDS)


async def _done(bus: Bus, group: str, positions: Positions) -> bool:
    await bus.commit(group, positions)
    return True
