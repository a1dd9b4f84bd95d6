"""The laws of the fan-out: one read for all, the same bytes, and nobody waits for the slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Self

import pytest

from telemetry_bus.bus import WHOLE, AtOffset, Earliest, Latest, Positions, Record, Slice, Start, open_bus
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.fanout import FanOut, FanOutReader, OffsetGone, ReadersFull, Skipped
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import Topic


class MemoryBus:
    """A bus in memory that counts its subscriptions, and that can be away."""

    url = "memory:"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.opened: list[Mapping[Topic, Start]] = []
        self.away = False
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def identity(self) -> str:
        return self.url

    def poke(self) -> None:
        """Wake every subscription."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        offsets = []
        for payload in payloads:
            offsets.append((await self.ends(topic))[0])
            self.records.append(Record(topic, 0, offsets[-1], 0.0, payload))
        self.poke()
        return offsets

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AsyncIterator[MemoryRead]:
        self.refuse_if_away()
        starts = start if isinstance(start, Mapping) else dict.fromkeys(topics, start)
        self.opened.append(starts)
        first = {topic: self.first(topic, starts[topic]) for topic in topics}
        yield MemoryRead(self, first)

    def first(self, topic: Topic, start: Start) -> int:
        held = sum(record.topic is topic for record in self.records)
        match start:
            case Latest():
                return held
            case AtOffset(offset, partitions):
                return offset if partitions is None else partitions[0]
            case _:
                return 0

    def refuse_if_away(self) -> None:
        """Raise while the bus is away."""
        if self.away:
            raise BusUnavailable(self.url, "read", ConnectionError("away"))

    async def commit(self, group: str, positions: Positions) -> None:
        raise NotImplementedError

    async def committed(self, group: str) -> Positions:
        raise NotImplementedError

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        self.refuse_if_away()
        return {0: sum(record.topic is topic for record in self.records)}


class MemoryRead:
    """One subscription."""

    def __init__(self, bus: MemoryBus, first: dict[Topic, int]) -> None:
        self.bus, self.first, self.at = bus, first, 0

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        while True:
            changed = self.bus.changed
            self.bus.refuse_if_away()
            batch = [
                r for r in self.bus.records[self.at :] if r.topic in self.first and r.offset >= self.first[r.topic]
            ]
            self.at = len(self.bus.records)
            if batch:
                yield batch
            else:
                await changed.wait()

    async def caught_up(self) -> bool:
        return self.at == len(self.bus.records)


async def take(reader: FanOutReader, count: int) -> list[Record | Skipped]:
    """The next ``count`` things that a reader gets."""
    return [await anext(reader) for _ in range(count)]


async def drained(fan: FanOut) -> None:
    """Run a fan-out until its readers end."""
    async with fan:
        with fan.reader(Topic.GPU) as reader:
            assert [item async for item in reader] == []


async def everything_read(fan: FanOut, topic: Topic, count: int) -> None:
    """Wait until ``count`` records of ``topic`` have come through the fan-out."""
    with fan.oldest(topic) as reader:
        while reader.position < count:
            await anext(reader)


async def test_fifty_readers_cost_one_subscription_and_get_the_very_same_bytes() -> None:
    """The bus is read once whatever the number of readers, and no payload is copied."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU, Topic.TRAIN], start=Earliest()) as fan:
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(fan.reader(Topic.GPU)) for _ in range(50)]
            await bus.publish(Topic.GPU, [b"one", b"two"])
            got = await asyncio.gather(*(take(reader, 2) for reader in readers))
            assert fan.readers == 50
        assert fan.readers == 0
        assert len(bus.opened) == fan.subscriptions == 1
        assert {id(item.payload) for items in got for item in items if isinstance(item, Record)} == {
            id(record.payload) for record in bus.records
        }


async def test_a_slow_reader_is_moved_forward_and_told_and_the_others_get_everything() -> None:
    """The ring moves past a slow reader, who learns by how many records; a quick one misses none."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=40) as fan:
        with fan.reader(Topic.GPU) as slow, fan.reader(Topic.GPU) as quick:
            seen = []
            for number in range(10):
                await bus.publish(Topic.GPU, [b"%010d" % number])
                seen += await take(quick, 1)
            first, second = await take(slow, 2)
        assert [item.offset for item in seen if isinstance(item, Record)] == list(range(10))
        assert first == Skipped(6)
        assert isinstance(second, Record)
        assert second.offset == 6
        assert fan.skipped == 6


async def test_the_ring_never_holds_more_than_its_bound() -> None:
    """A ring is bounded in bytes; a single item larger than the bound stands alone."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=100) as fan:
        for number in range(50):
            await bus.publish(Topic.GPU, [bytes(number)])
            await everything_read(fan, Topic.GPU, number + 1)
            assert fan.bytes_held(Topic.GPU) <= 100
        await bus.publish(Topic.GPU, [bytes(500)])
        await everything_read(fan, Topic.GPU, 51)
        assert fan.bytes_held(Topic.GPU) == 500


async def test_a_reader_resumes_at_an_offset_and_is_told_when_that_is_gone() -> None:
    """An offset in the ring is where reading goes on; one that has left it is refused with the earliest held."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=30) as fan:
        await bus.publish(Topic.GPU, [b"%010d" % number for number in range(5)])
        await everything_read(fan, Topic.GPU, 5)
        with fan.reader(Topic.GPU, offset=3) as reader:
            items = await take(reader, 2)
        assert [item.offset for item in items if isinstance(item, Record)] == [3, 4]
        with pytest.raises(OffsetGone, match="earliest here is 2") as caught:
            fan.reader(Topic.GPU, offset=1)
        assert caught.value.earliest == 2


async def test_one_reader_too_many_is_refused_and_a_place_given_back_is_free() -> None:
    """Readers are bounded, and a closed one makes room."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], readers_max=2) as fan:
        with fan.reader(Topic.GPU):
            with fan.reader(Topic.GPU), pytest.raises(ReadersFull, match="all 2 readers"):
                fan.reader(Topic.GPU).__enter__()
            with fan.reader(Topic.GPU):
                assert fan.readers == 2


async def test_what_came_while_the_bus_was_away_comes_afterwards_and_nothing_twice() -> None:
    """After an outage reading goes on behind the last record that was read."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU]) as fan:
        with fan.reader(Topic.GPU) as reader:
            await fan.caught_up()
            await bus.publish(Topic.GPU, [b"before"])
            await take(reader, 1)
            bus.away = True
            bus.poke()
            while fan.available:
                await asyncio.sleep(0)
            bus.away = False
            await bus.publish(Topic.GPU, [b"during"])
            (item,) = await take(reader, 1)
        assert isinstance(item, Record)
        assert item.payload == b"during"
        assert bus.opened[-1] == {Topic.GPU: AtOffset(partitions={0: 1})}


async def test_readers_end_when_the_fan_out_is_closed() -> None:
    """Nobody waits for ever on a fan-out that is gone."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], start=Earliest()) as fan:
        with fan.reader(Topic.GPU) as reader:
            await bus.publish(Topic.GPU, [b"last"])
            await everything_read(fan, Topic.GPU, 1)
            fan.close()
            assert [item async for item in reader if isinstance(item, Record)] == bus.records


async def test_a_fault_of_ours_ends_the_fan_out_loudly() -> None:
    """What is no outage is not tried again for ever: it is shown, and it comes out of the block."""
    bus = MemoryBus()
    bus.subscribe = None  # type: ignore[assignment,method-assign]  # a bus that breaks its own protocol
    fan = FanOut(bus, [Topic.GPU])
    with pytest.raises(ExceptionGroup) as caught:
        await drained(fan)
    assert isinstance(fan.failure, TypeError)
    assert caught.group_contains(TypeError)


async def test_over_the_real_log_every_record_comes_through(tmp_path: object) -> None:
    """The embedded bus feeds the fan-out: all topics, in order, from the earliest."""
    async with open_bus(f"file://{tmp_path}", SystemClock()) as bus:
        await bus.publish(Topic.GPU, [b"a", b"b"])
        async with FanOut(bus, [Topic.GPU, Topic.TRAIN], start=Earliest()) as fan:
            await fan.caught_up()
            await bus.publish(Topic.GPU, [b"c"])
            with fan.oldest(Topic.GPU) as reader:
                items = await take(reader, 3)
        assert [item.payload for item in items if isinstance(item, Record)] == [b"a", b"b", b"c"]
