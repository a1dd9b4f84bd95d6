"""The laws of the fan-out: one read for all, the same bytes, and nobody waits for the slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Self

import pytest

from telemetry_bus.bus import WHOLE, AtOffset, Earliest, Latest, Positions, Record, Slice, Start, open_bus
from telemetry_bus.cursor import cursor_text
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.fanout import FanOut, FanOutReader, OffsetGone, ReadersFull
from telemetry_bus.ring import Skipped
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import Topic


class MemoryBus:
    """A bus in memory that counts its subscriptions, and that can be away. A key is a partition's number."""

    url = "memory:"

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = range(partitions)
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
        offsets, partition = [], int(key or 0)
        for payload in payloads:
            offsets.append((await self.ends(topic))[partition])
            self.records.append(Record(topic, partition, offsets[-1], 0.0, payload))
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
        yield MemoryRead(self, first, part.among(self.partitions))

    def first(self, topic: Topic, start: Start) -> Mapping[int, int]:
        match start:
            case Latest():
                return self.held(topic)
            case AtOffset(offset, partitions):
                return dict.fromkeys(self.partitions, offset) if partitions is None else partitions
            case _:
                return {}

    def held(self, topic: Topic) -> dict[int, int]:
        """How many records there are of each partition."""
        return {
            at: sum(record.topic is topic and record.partition == at for record in self.records)
            for at in self.partitions
        }

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
        return self.held(topic)


class MemoryRead:
    """One subscription."""

    def __init__(self, bus: MemoryBus, first: dict[Topic, Mapping[int, int]], wanted: Sequence[int]) -> None:
        self.bus, self.first, self.wanted, self.at = bus, first, wanted, 0

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        while True:
            changed = self.bus.changed
            self.bus.refuse_if_away()
            batch = [
                r
                for r in self.bus.records[self.at :]
                if r.topic in self.first
                and r.partition in self.wanted
                and r.offset >= self.first[r.topic].get(r.partition, 0)
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
        with fan.reader(Topic.GPU, {0: 3}) as reader:
            items = await take(reader, 2)
        assert [item.offset for item in items if isinstance(item, Record)] == [3, 4]
        with pytest.raises(OffsetGone, match="earliest here is 2") as caught:
            fan.reader(Topic.GPU, {0: 1})
        assert caught.value.earliest == {0: 2}


async def two_partitions(bus: MemoryBus, count: int) -> None:
    """Records 0, 1, ... of partition 0 and 1, taking turns; a payload names its place."""
    for number in range(count):
        for partition in (0, 1):
            await bus.publish(Topic.GPU, [b"%d:%d" % (partition, number)], str(partition))


def places(items: Sequence[Record | Skipped]) -> list[str]:
    """Where the records stood."""
    return [f"{item.partition}:{item.offset}" for item in items if isinstance(item, Record)]


async def test_a_cursor_goes_on_in_every_partition_where_it_was() -> None:
    """Behind what was given nothing is repeated and nothing left out, whatever the partition."""
    async with MemoryBus(partitions=2) as bus, FanOut(bus, [Topic.GPU], start=Earliest()) as fan:
        await two_partitions(bus, 5)
        with fan.oldest(Topic.GPU) as reader:
            before = places(await take(reader, 3))
            cursor = reader.cursor
        assert cursor == {0: 2, 1: 1}
        with fan.reader(Topic.GPU, fan.cursor_of(Topic.GPU, cursor_text(cursor))) as reader:
            assert reader.in_step
            after = places(await take(reader, 7))
        assert before + after == [f"{partition}:{number}" for number in range(5) for partition in (0, 1)]


async def test_a_cursor_of_another_process_repeats_nothing() -> None:
    """Another process has read the partitions in another order: what it gave already is left out here, and the cursor
    never falls behind it."""
    async with MemoryBus(partitions=2) as bus, FanOut(bus, [Topic.GPU], start=Earliest()) as fan:
        await two_partitions(bus, 4)
        await everything_read(fan, Topic.GPU, 8)
        with fan.reader(Topic.GPU, {0: 1, 1: 3}) as reader:
            assert not reader.in_step
            assert places(await take(reader, 1)) == ["0:1"]
            assert reader.cursor == {0: 2, 1: 3}
            assert places(await take(reader, 3)) == ["0:2", "0:3", "1:3"]
            assert reader.in_step


async def test_a_partition_that_a_cursor_does_not_name_begins_at_the_oldest() -> None:
    """A topic that was given more partitions is read whole."""
    async with MemoryBus(partitions=2) as bus, FanOut(bus, [Topic.GPU], start=Earliest()) as fan:
        await two_partitions(bus, 2)
        await everything_read(fan, Topic.GPU, 4)
        with fan.reader(Topic.GPU, {0: 2}) as reader:
            assert places(await take(reader, 2)) == ["1:0", "1:1"]


async def test_an_offset_is_gone_in_its_partition_alone() -> None:
    """Who asks for what has left the ring is told which partitions and where each begins now."""
    async with MemoryBus(partitions=2) as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=9) as fan:
        await two_partitions(bus, 4)
        await everything_read(fan, Topic.GPU, 8)
        with pytest.raises(OffsetGone, match="the earliest here is 1:2") as caught:
            fan.reader(Topic.GPU, {0: 3, 1: 1})
        assert caught.value.earliest == {1: 2}
        assert fan.reader(Topic.GPU, {0: 3, 1: 3}).in_step


async def test_what_was_given_last_can_be_resumed_after_it_has_left_the_ring() -> None:
    """An offset that follows what was dropped is not gone, though no record has it: nothing lies between."""
    async with MemoryBus() as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=3) as fan:
        bus.records.append(Record(Topic.GPU, 0, 4, 0.0, b"one"))
        bus.records.append(Record(Topic.GPU, 0, 9, 0.0, b"two"))
        bus.poke()
        await everything_read(fan, Topic.GPU, 2)
        with fan.reader(Topic.GPU, {0: 5}) as reader:
            assert places(await take(reader, 1)) == ["0:9"]


async def test_a_reader_that_was_moved_forward_has_the_cursor_of_where_it_stands() -> None:
    """After a skip the cursor is that of the ring's beginning, in every partition."""
    async with MemoryBus(partitions=2) as bus, FanOut(bus, [Topic.GPU], start=Earliest(), ring_bytes=9) as fan:
        with fan.reader(Topic.GPU) as slow:
            await two_partitions(bus, 4)
            await everything_read(fan, Topic.GPU, 8)
            assert await take(slow, 1) == [Skipped(5)]
            assert slow.cursor == {0: 3, 1: 2}
            assert places(await take(slow, 3)) == ["1:2", "0:3", "1:3"]


async def test_a_fan_out_of_a_slice_reads_its_partitions_only() -> None:
    """Slices share a topic's partitions between them."""
    async with MemoryBus(partitions=4) as bus:
        for partition in range(4):
            await bus.publish(Topic.GPU, [b"x"], str(partition))
        async with FanOut(bus, [Topic.GPU], start=Earliest(), part=Slice(1, 2)) as fan:
            with fan.oldest(Topic.GPU) as reader:
                assert places(await take(reader, 2)) == ["1:0", "3:0"]
            await fan.caught_up()
            assert fan.reader(Topic.GPU).cursor == {1: 1, 3: 1}


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
