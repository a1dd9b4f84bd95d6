"""How several buses are read as one: each by a pump of its own, which goes on alone when its bus is back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from telemetry_bus.bus import AtOffset, AtTime, Bus, Latest, Positions, Record, Slice, Start, Subscription
from telemetry_bus.errors import BusClosed, BusError, BusUnavailable
from telemetry_bus.reading import Reading
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TELEMETRY, Topic

STRIDE = 4_097
"""Partition ``p`` of bus ``i`` is ``i * STRIDE + p``. More partitions than any topic needs, and an odd number, so that
two buses of one partition each fall to two slices."""
EVERYWHERE: frozenset[Topic] = frozenset({*TELEMETRY, Topic.BACKLOG})
"""The topics that are read from every bus."""
ANSWER_SECONDS_MAX = 2.0
"""A bus in another region answers within a fifth of a second; one that takes ten times as long is away."""
ASK_AGAIN_SECONDS = 5.0
"""A bus that is away is left alone for so long, so that a caller who asks it for every topic waits once."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
"""A bus that is away is subscribed to again after 0.1 s, 0.2 s, ... at most 5 s."""

T = TypeVar("T")


class Member:
    """One of the buses, and whether it can be reached. ``away_since`` is UTC seconds, ``problem`` says why."""

    def __init__(self, index: int, bus: Bus, clock: Clock) -> None:
        self.index, self.bus = index, bus
        self.opened = asyncio.Event()
        self.away_since: float | None = None
        self.problem: str | None = None
        self._clock = clock
        self._ask_at = 0.0

    @property
    def first(self) -> int:
        """The number of its partition 0."""
        return self.index * STRIDE

    def is_away(self, error: BaseException) -> None:
        """It could not be reached just now."""
        self.away_since = self._clock.now() if self.away_since is None else self.away_since
        silent = isinstance(error, TimeoutError)
        self.problem = f"no answer within {ANSWER_SECONDS_MAX:g} s" if silent else str(error) or type(error).__name__
        self._ask_at = self._clock.monotonic() + ASK_AGAIN_SECONDS

    def is_back(self) -> None:
        """It has answered."""
        self.away_since = self.problem = None

    async def ask(self, question: Callable[[Bus], Awaitable[T]]) -> T | None:
        """What the bus answers; ``None`` while it is away."""
        if not self.opened.is_set() or (self.away_since is not None and self._clock.monotonic() < self._ask_at):
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answer = await question(self.bus)
        except (BusError, TimeoutError) as error:
            self.is_away(error)
            return None
        self.is_back()
        return answer

    def numbered(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """``offsets`` of its partitions, by their numbers here."""
        return {self.first + partition: offset for partition, offset in offsets.items()}

    def own(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """Those of ``offsets`` that are of this bus, by its own partitions."""
        return {at - self.first: offset for at, offset in offsets.items() if at // STRIDE == self.index}

    def own_positions(self, positions: Positions) -> dict[Topic, dict[int, int]]:
        """Those of ``positions`` that are of this bus."""
        found = {topic: self.own(offsets) for topic, offsets in positions.items()}
        return {topic: offsets for topic, offsets in found.items() if offsets}

    def own_part(self, part: Slice) -> Slice:
        """The slice of its own partitions whose numbers here are in ``part``."""
        return Slice((part.index - self.first) % part.count, part.count)

    def own_start(self, start: Start, now: float) -> Start:
        """Where to begin on this bus. Where it is away at ``now``, "what comes from now on" is known by the time."""
        match start:
            case AtOffset(offset, partitions) if partitions is not None:
                return AtOffset(offset, self.own(partitions))
            case Latest() if not self.opened.is_set() or self.away_since is not None:
                return AtTime(now)
            case _:
                return start


class FederatedSubscription:
    """Batches of all members as they come, the one whose first record is oldest first; each is of one bus.

    A member that is away is left out. It raises :class:`BusUnavailable` only when all of them are.
    """

    def __init__(
        self, url: str, members: Sequence[Member], starts: Mapping[Topic, Start], part: Slice, now: float
    ) -> None:
        self._url, self._members, self._part = url, members, part
        self._starts = [
            {
                topic: member.own_start(start, now)
                for topic, start in starts.items()
                if member.index == 0 or topic in EVERYWHERE
            }
            for member in members
        ]
        self._pumps: list[asyncio.Task[None]] = []
        self._open: dict[int, Subscription] = {}
        self._failed: set[int] = set()
        self._waiting: dict[int, list[Record]] = {}
        self._taken = [asyncio.Event() for _ in members]
        self._changed = asyncio.Event()
        self._fault: Exception | None = None

    async def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Start reading; back when every member is read or away, or has not answered for
        :data:`ANSWER_SECONDS_MAX`."""
        self._pumps = [
            tasks.create_task(self._pump(member), name=f"read bus {member.index}") for member in self._members
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                while len(self._open) + len(self._failed) < len(self._members) and self._fault is None:
                    self._changed.clear()
                    await self._changed.wait()

    def close(self) -> None:
        """The bus is closed: who waits is told, and nothing is read any more."""
        self._fault = BusClosed(self._url, "read")
        self._changed.set()
        for pump in self._pumps:
            pump.cancel()

    async def end(self) -> None:
        """Read no more."""
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        """Yield non-empty batches."""
        while True:
            self._changed.clear()
            if self._fault is not None:
                raise self._fault
            if self._waiting:
                index = min(self._waiting, key=lambda at: self._waiting[at][0].time)
                records = self._waiting.pop(index)
                self._taken[index].set()
                yield records
            elif len(self._failed) == len(self._members):
                raise BusUnavailable(self._url, "read", BusError("none of its buses can be reached"))
            else:
                await self._changed.wait()

    async def caught_up(self) -> bool:
        """Whether what was on the buses that can be reached has been yielded."""
        if self._waiting:
            return False
        reached = await asyncio.gather(*(self._has_caught_up(at, open_) for at, open_ in list(self._open.items())))
        return all(reached) and not self._waiting

    async def _has_caught_up(self, index: int, subscription: Subscription) -> bool:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await subscription.caught_up()
        except (BusUnavailable, TimeoutError) as error:
            self._members[index].is_away(error)
            return True

    async def _pump(self, member: Member) -> None:
        """Read one member until cancelled."""
        index, wait_seconds = member.index, BACKOFF_FIRST_SECONDS
        reading: Reading | None = None
        while True:
            try:
                if not member.opened.is_set():
                    self._note_failed(index)
                await member.opened.wait()
                if reading is None:
                    reading = await self._reading(member)
                async with contextlib.aclosing(self._records(member, reading)) as batches:
                    async for records in batches:
                        wait_seconds = BACKOFF_FIRST_SECONDS
                        await self._offer(index, records)
            except BusError as error:
                if not error.retryable and index == 0:
                    self._fault = error
                member.is_away(error)
            except Exception as error:  # noqa: BLE001  a fault of ours: who reads is told
                self._fault = error
                self._changed.set()
                return
            self._note_failed(index)
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, BACKOFF_MAX_SECONDS)

    async def _reading(self, member: Member) -> Reading:
        starts, part = self._starts[member.index], member.own_part(self._part)
        ends = {topic: await member.bus.ends(topic) for topic in starts}
        return Reading(starts, {topic: {at: found[at] for at in part.among(found)} for topic, found in ends.items()})

    async def _records(self, member: Member, reading: Reading) -> AsyncGenerator[list[Record], None]:
        starts = reading.starts()
        async with member.bus.subscribe(tuple(starts), starts, member.own_part(self._part)) as subscription:
            member.is_back()
            self._failed.discard(member.index)
            self._open[member.index] = subscription
            self._changed.set()
            async for records in subscription:
                if fresh := self._numbered(member, reading.take(records)):
                    yield fresh

    def _numbered(self, member: Member, records: list[Record]) -> list[Record]:
        part = self._part
        if member.index:
            records = [Record(r.topic, member.first + r.partition, r.offset, r.time, r.payload) for r in records]
        if part.count == 1:
            return records
        # A bus with one partition gives it to every slice; of several buses it is one partition of many.
        return [r for r in records if r.topic not in EVERYWHERE or r.partition % part.count == part.index]

    async def _offer(self, index: int, records: list[Record]) -> None:
        self._taken[index].clear()
        self._waiting[index] = records
        self._changed.set()
        await self._taken[index].wait()

    def _note_failed(self, index: int) -> None:
        self._open.pop(index, None)
        self._failed.add(index)
        self._changed.set()
