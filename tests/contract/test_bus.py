"""What every implementation of the bus promises.

Offsets only grow and need not be dense; records of one topic keep their order; what `publish` has returned is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from telemetry_bus import (
    AtOffset,
    AtTime,
    Bus,
    BusClosed,
    BusError,
    Earliest,
    Latest,
    Record,
    Start,
    Subscription,
    Topic,
    open_bus,
)
from telemetry_bus.runtime.clock import ManualClock

if TYPE_CHECKING:
    from tests.contract.conftest import BusFactory, Processes

WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""
KILLS = 50


async def read(subscription: Subscription, count: int) -> list[Record]:
    """The next records, as soon as there are `count` of them."""
    records: list[Record] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for batch in subscription:
            assert batch, "a batch is never empty"
            records += batch
            if len(records) >= count:
                break
    return records


async def read_to(subscription: Subscription, offset: int) -> list[Record]:
    """The next records, as soon as the one with `offset` is among them."""
    records: list[Record] = []
    while not records or records[-1].offset < offset:
        records += await read(subscription, 1)
    return records


async def everything(bus: Bus, topics: Sequence[Topic], start: Start | Mapping[Topic, Start]) -> list[Record]:
    """What is there now from `start` on."""
    records: list[Record] = []
    async with asyncio.timeout(WAIT_SECONDS), bus.subscribe(topics, start) as subscription:
        batches = aiter(subscription)
        following = asyncio.ensure_future(anext(batches))
        while True:
            caught_up = await subscription.caught_up()
            if following.done():
                records += following.result()
                following = asyncio.ensure_future(anext(batches))
            elif caught_up:
                break
            else:
                await asyncio.sleep(0.001)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    return records


async def payloads(bus: Bus, topic: Topic, start: Start | None = None) -> list[bytes]:
    """The payloads of one topic, from the earliest on unless told."""
    return [record.payload for record in await everything(bus, [topic], Earliest() if start is None else start)]


def numbered(count: int, name: str = "payload") -> list[bytes]:
    """Payloads that can be told apart."""
    return [f"{name}:{number}".encode() for number in range(count)]


async def test_what_was_published_is_read_back_whole_and_in_order(bus_factory: BusFactory) -> None:
    """Payloads of one call keep their order, their bytes and the offsets that publish returned."""
    async with bus_factory() as bus:
        offsets = await bus.publish(Topic.TRAIN, numbered(600))
        records = await everything(bus, [Topic.TRAIN], Earliest())
    assert [record.payload for record in records] == numbered(600)
    assert [record.offset for record in records] == list(offsets)
    assert list(offsets) == sorted(set(offsets))
    assert {record.topic for record in records} == {Topic.TRAIN}


@pytest.mark.parametrize(
    "payload", [b"", b"\0", bytes(range(256)) * 65536], ids=["empty", "a zero byte", "16 MiB, the largest"]
)
async def test_any_bytes_are_a_payload(bus_factory: BusFactory, payload: bytes) -> None:
    """The bus looks into nothing: empty, binary and large payloads come back as they were."""
    async with bus_factory() as bus:
        await bus.publish(Topic.EVENTS, [payload])
        assert await payloads(bus, Topic.EVENTS) == [payload]


@pytest.mark.parametrize("wrong", ["text", None, 7, bytes(16 * 1024 * 1024 + 1)], ids=["text", "none", "int", "large"])
async def test_what_cannot_be_a_payload_is_refused_and_hurts_nobody_else(bus_factory: BusFactory, wrong: bytes) -> None:
    """The call that carries it fails as a whole, those beside it succeed."""
    async with bus_factory() as bus:
        answers = await asyncio.gather(
            bus.publish(Topic.TRAIN, [b"before"]),
            bus.publish(Topic.TRAIN, [b"beside", wrong]),
            bus.publish(Topic.TRAIN, [b"after"]),
            return_exceptions=True,
        )
        assert isinstance(answers[1], BusError)
        assert "payload 1 for telemetry.train" in str(answers[1])
        assert await payloads(bus, Topic.TRAIN) == [b"before", b"after"]


async def test_publishing_nothing_is_allowed(bus_factory: BusFactory) -> None:
    """No payloads, no offsets."""
    async with bus_factory() as bus:
        assert list(await bus.publish(Topic.TRAIN, [])) == []
        assert await payloads(bus, Topic.TRAIN) == []


async def test_many_publishers_at_once_lose_nothing_and_each_keeps_its_order(bus_factory: BusFactory) -> None:
    """What one publisher sends one after the other is in the log in that order."""
    async with bus_factory() as bus, bus_factory() as other:

        async def publisher(number: int) -> None:
            for payload in numbered(5, str(number)):
                await (bus, other)[number % 2].publish(Topic.METRICS, [payload])

        await asyncio.gather(*(publisher(number) for number in range(64)))
        found = await payloads(bus, Topic.METRICS)
    assert len(found) == 320
    for number in range(64):
        assert [payload for payload in found if payload.startswith(f"{number}:".encode())] == numbered(5, str(number))


async def test_what_publish_has_returned_survives_a_kill_at_any_moment(
    bus_factory: BusFactory, processes: Processes, moments: random.Random
) -> None:
    """A process publishes and says what returned; after SIGKILL all of it is there, once, under its offset."""
    returned: dict[int, str] = {}
    for attempt in range(KILLS):
        child = processes.start("publish", bus_factory.url, f"kill{attempt}")
        await child.written(moments.randrange(12))
        await asyncio.sleep(moments.uniform(0, 0.004))
        for line in await child.killed():
            offset, payload = line.split()
            assert int(offset) not in returned, "an offset was given twice"
            returned[int(offset)] = payload
    async with bus_factory() as bus:
        records = await everything(bus, [Topic.TRAIN], Earliest())
    there = {record.offset: record.payload.decode() for record in records}
    assert len(there) == len(records)
    assert len(set(there.values())) == len(records), "a payload is there twice"
    assert {offset: there.get(offset) for offset in returned} == returned
    assert len(returned) > KILLS


async def test_a_log_that_was_killed_goes_on_with_larger_offsets(bus_factory: BusFactory, processes: Processes) -> None:
    """Opening after a kill needs nothing done by hand, and no offset is given again."""
    child = processes.start("publish", bus_factory.url, "killed")
    await child.written(3)
    last = max(int(line.split()[0]) for line in await child.killed())
    async with bus_factory() as bus:
        assert (await bus.ends(Topic.TRAIN))[0] > last
        assert (await bus.publish(Topic.TRAIN, [b"after"]))[0] > last


async def test_processes_of_one_machine_write_and_read_at_once(bus_factory: BusFactory, processes: Processes) -> None:
    """Two processes write while a third and this one read: both readers see the same log, whole."""
    reader = processes.start("read", bus_factory.url, "reader", 400)
    writers = [processes.start("publish", bus_factory.url, name, 200) for name in ("left", "right")]
    async with bus_factory() as bus, bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
        records = await read(subscription, 400)
    lines = [f"{record.offset} {record.payload.decode()}\n" for record in records]
    assert await reader.written(400) == lines
    assert sorted(lines) == sorted(await writers[0].written(200) + await writers[1].written(200))


async def test_a_waiting_subscriber_sees_what_another_process_publishes(
    bus_factory: BusFactory, processes: Processes
) -> None:
    """A reader that has caught up needs nothing of its own process to go on."""
    async with bus_factory() as bus, bus.subscribe([Topic.TRAIN], Latest()) as subscription:
        waiting = asyncio.ensure_future(read(subscription, 1))
        await asyncio.sleep(0)
        processes.start("publish", bus_factory.url, "elsewhere", 1)
        assert [record.payload for record in await waiting] == [b"elsewhere:0"]


async def test_latest_begins_behind_what_is_there(bus_factory: BusFactory) -> None:
    """Only what is published after subscribing is read."""
    async with bus_factory() as bus:
        await bus.publish(Topic.TRAIN, [b"old"])
        async with bus.subscribe([Topic.TRAIN], Latest()) as subscription:
            await bus.publish(Topic.TRAIN, [b"new"])
            assert [record.payload for record in await read(subscription, 1)] == [b"new"]


async def test_an_offset_begins_with_the_first_record_that_is_not_before_it(bus_factory: BusFactory) -> None:
    """The offset itself is included; one that was never given means the next that was."""
    async with bus_factory() as bus:
        first = await bus.publish(Topic.TRAIN, [b"one"])
        await bus.publish(Topic.GPU, [b"between"])
        second = await bus.publish(Topic.TRAIN, [b"two"])
        assert await payloads(bus, Topic.TRAIN, AtOffset(second[0])) == [b"two"]
        assert await payloads(bus, Topic.TRAIN, AtOffset(first[0] + 1)) == [b"two"]
        assert await payloads(bus, Topic.TRAIN, AtOffset(partitions={0: second[0]})) == [b"two"]
        assert await payloads(bus, Topic.TRAIN, AtOffset(0)) == [b"one", b"two"]
        assert await payloads(bus, Topic.TRAIN, AtOffset(second[0] + 1)) == []


async def test_a_time_begins_with_the_first_record_appended_then_or_later(bus_factory: BusFactory) -> None:
    """The bus's own clock at appending decides, to the instant."""
    clock = ManualClock(1000.0)
    async with bus_factory(clock) as bus:
        for number in range(3):
            await bus.publish(Topic.TRAIN, [str(number).encode()])
            await bus_factory.pass_time(clock)
        times = [record.time for record in await everything(bus, [Topic.TRAIN], Earliest())]
        assert times == sorted(set(times))
        assert await payloads(bus, Topic.TRAIN, AtTime(times[1])) == [b"1", b"2"]
        assert await payloads(bus, Topic.TRAIN, AtTime(times[1] + 0.001)) == [b"2"]
        assert await payloads(bus, Topic.TRAIN, AtTime(0.0)) == [b"0", b"1", b"2"]
        assert await payloads(bus, Topic.TRAIN, AtTime(times[2] + 1000.0)) == []


async def test_several_topics_are_read_together_and_no_other(bus_factory: BusFactory) -> None:
    """A subscription yields every record of its topics, each topic in order."""
    async with bus_factory() as bus:
        for number in range(300):
            await bus.publish((Topic.GPU, Topic.TRAIN, Topic.TICKS)[number % 3], [str(number).encode()])
        records = await everything(bus, [Topic.GPU, Topic.TICKS], Earliest())
    for topic, rest in ((Topic.GPU, 0), (Topic.TICKS, 2)):
        assert [int(record.payload) for record in records if record.topic is topic] == list(range(rest, 300, 3))
    assert len(records) == 200


async def test_each_topic_may_begin_elsewhere(bus_factory: BusFactory) -> None:
    """Starts are given by topic: one from the beginning, one from now on, one from where it was left."""
    async with bus_factory() as bus:
        await bus.publish(Topic.GPU, [b"gpu old"])
        await bus.publish(Topic.TRAIN, [b"train old"])
        left = await bus.publish(Topic.EVENTS, [b"event old", b"event next"])
        starts: dict[Topic, Start] = {
            Topic.GPU: Latest(),
            Topic.TRAIN: Earliest(),
            Topic.EVENTS: AtOffset(left[1]),
        }
        async with bus.subscribe(list(starts), starts) as subscription:
            await bus.publish(Topic.GPU, [b"gpu new"])
            found = {record.payload for record in await read(subscription, 3)}
    assert found == {b"gpu new", b"train old", b"event next"}


async def test_a_subscriber_that_stops_goes_on_where_it_was(bus_factory: BusFactory) -> None:
    """From the offset behind the last record on, nothing is read twice and nothing is left out."""
    async with bus_factory() as bus:
        await bus.publish(Topic.TRAIN, numbered(1000))
        records: list[Record] = []
        while len(records) < 1000:
            start = AtOffset(records[-1].offset + 1) if records else AtOffset(0)
            async with bus.subscribe([Topic.TRAIN], start) as subscription:
                records += await read(subscription, 1)
    assert [record.payload for record in records] == numbered(1000)


async def test_a_slow_reader_does_not_stop_the_writer(bus_factory: BusFactory) -> None:
    """While one reader holds its first batch, publishing goes on; afterwards that reader gets all the rest."""
    async with bus_factory() as bus, bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
        await bus.publish(Topic.TRAIN, numbered(1))
        batches = aiter(subscription)
        held = list(await anext(batches))
        for payload in numbered(300)[1:]:
            await bus.publish(Topic.TRAIN, [payload])
        assert await subscription.caught_up() is False
        while len(held) < 300:
            held += await anext(batches)
    assert [record.payload for record in held] == numbered(300)


async def test_caught_up_says_whether_all_that_is_there_has_been_yielded(bus_factory: BusFactory) -> None:
    """False while something is left, true behind the last record, false again when more comes."""
    async with bus_factory() as bus:
        await bus.publish(Topic.TRAIN, numbered(2))
        async with bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
            assert await subscription.caught_up() is False
            await read(subscription, 2)
            assert await subscription.caught_up() is True
            await bus.publish(Topic.GPU, [b"another topic"])
            assert await subscription.caught_up() is True
            await bus.publish(Topic.TRAIN, [b"more"])
            assert await subscription.caught_up() is False


async def test_a_position_is_remembered_and_never_goes_back(bus_factory: BusFactory) -> None:
    """A group has one position a topic; a smaller one is ignored, other topics and groups are left alone."""
    async with bus_factory() as bus:
        assert await bus.committed("detect") == {}
        await bus.commit("detect", {Topic.TRAIN: {0: 7}, Topic.GPU: {0: 3}})
        await bus.commit("detect", {Topic.TRAIN: {0: 5}})
        await bus.commit("alert", {Topic.TRAIN: {0: 1}})
        assert await bus.committed("detect") == {Topic.TRAIN: {0: 7}, Topic.GPU: {0: 3}}
    async with bus_factory() as bus:
        assert await bus.committed("detect") == {Topic.TRAIN: {0: 7}, Topic.GPU: {0: 3}}
        assert await bus.committed("alert") == {Topic.TRAIN: {0: 1}}


async def test_a_committed_position_survives_a_kill_at_any_moment(
    bus_factory: BusFactory, processes: Processes, moments: random.Random
) -> None:
    """After SIGKILL a group is at least where a commit had returned."""
    for attempt in range(KILLS // 4):
        child = processes.start("commit", bus_factory.url, f"group{attempt}")
        await child.written(1 + moments.randrange(10))
        await asyncio.sleep(moments.uniform(0, 0.004))
        returned = [int(line) for line in await child.killed()]
        async with bus_factory() as bus:
            position = (await bus.committed(f"group{attempt}"))[Topic.TRAIN][0]
        assert position in (returned[-1], returned[-1] + 1)


async def test_the_end_follows_the_newest_record_of_its_topic(bus_factory: BusFactory) -> None:
    """It is 0 for a topic that never had a record, and other topics do not move it."""
    async with bus_factory() as bus:
        assert (await bus.ends(Topic.TRAIN))[0] == 0
        offsets = await bus.publish(Topic.TRAIN, numbered(3))
        await bus.publish(Topic.GPU, numbered(3))
        assert (await bus.ends(Topic.TRAIN))[0] == offsets[-1] + 1


async def test_a_publisher_that_is_cancelled_leaves_the_bus_working(bus_factory: BusFactory) -> None:
    """Cancelled before or while it is written, others are answered and the log stays whole."""
    async with bus_factory() as bus:
        for number in range(50):
            cancelled = asyncio.ensure_future(bus.publish(Topic.TRAIN, [b"cancelled"]))
            beside = asyncio.ensure_future(bus.publish(Topic.TRAIN, [str(number).encode()]))
            await asyncio.sleep(0)
            cancelled.cancel()
            await beside
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        found = [payload for payload in await payloads(bus, Topic.TRAIN) if payload != b"cancelled"]
    assert found == [str(number).encode() for number in range(50)]


async def test_a_bus_that_is_not_open_says_so(bus_factory: BusFactory) -> None:
    """Before it is opened and after it is closed every call raises BusClosed with the bus's URL."""
    bus = bus_factory()

    async def subscribe() -> None:
        async with bus.subscribe([Topic.TRAIN], Latest()):
            pass

    calls: list[Callable[[], object]] = [
        lambda: bus.publish(Topic.TRAIN, [b"payload"]),
        lambda: bus.commit("group", {Topic.TRAIN: {0: 1}}),
        lambda: bus.committed("group"),
        lambda: bus.ends(Topic.TRAIN),
        subscribe,
    ]
    for _ in range(2):
        for call in calls:
            with pytest.raises(BusClosed) as refused:
                await call()  # type: ignore[misc]
            assert bus.url in str(refused.value)
        async with bus:
            await bus.publish(Topic.TRAIN, [b"payload"])


async def test_a_subscriber_that_waits_when_the_bus_is_closed_is_told(bus_factory: BusFactory) -> None:
    """It does not wait for ever for records that cannot come."""
    async with bus_factory() as bus, bus.subscribe([Topic.TRAIN], Latest()) as subscription:
        waiting = asyncio.ensure_future(read(subscription, 1))
        await asyncio.sleep(0)
        await bus.__aexit__()
        with pytest.raises(BusClosed):
            await waiting


async def test_what_was_given_to_publish_before_closing_is_written(bus_factory: BusFactory) -> None:
    """Closing waits for what is on its way."""
    async with bus_factory() as bus:
        waiting = [asyncio.ensure_future(bus.publish(Topic.TRAIN, [payload])) for payload in numbered(20)]
        await asyncio.sleep(0)
    offsets = [offset for answer in await asyncio.gather(*waiting) for offset in answer]
    async with bus_factory() as bus:
        assert [record.offset for record in await everything(bus, [Topic.TRAIN], Earliest())] == offsets
        assert await payloads(bus, Topic.TRAIN) == numbered(20)


async def test_the_url_of_a_bus_opens_the_same_bus(bus_factory: BusFactory) -> None:
    """`open_bus(bus.url)` is the same log, whatever characters are in its name."""
    clock = ManualClock()
    async with bus_factory(clock) as bus:
        await bus.publish(Topic.TRAIN, [b"here"])
        async with open_bus(bus.url, clock) as again:
            assert again.url == bus.url
            assert await payloads(again, Topic.TRAIN) == [b"here"]


async def trimmed(
    factory: BusFactory, bus: Bus, clock: ManualClock, wanted: Callable[[list[Record]], bool]
) -> list[Record]:
    """What is kept of telemetry.train, as soon as it is as wanted; time passes and the bus is used meanwhile."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not wanted(kept := await everything(bus, [Topic.TRAIN], Earliest())):
            await factory.trim(bus, clock)
    return kept


def at_most(size: int) -> Callable[[list[Record]], bool]:
    """Whether the payloads have no more bytes in all."""
    return lambda records: sum(len(record.payload) for record in records) <= size


async def test_what_is_beyond_the_bound_in_bytes_goes_oldest_first(bus_factory: BusFactory) -> None:
    """The newest records that fit are kept, whole and in order; another topic keeps its own."""
    clock = ManualClock()
    hundreds = [bytes([number]) * 100 for number in range(100)]
    async with bus_factory(clock, keep_bytes=1000) as bus:
        await bus.publish(Topic.TRAIN, hundreds)
        await bus.publish(Topic.GPU, [b"another topic"])
        kept = await trimmed(bus_factory, bus, clock, at_most(1000))
        assert [record.payload for record in kept] == hundreds[-10:]
        assert await payloads(bus, Topic.GPU) == [b"another topic"]


async def test_offsets_go_on_growing_after_everything_was_trimmed(bus_factory: BusFactory) -> None:
    """Neither an empty topic nor a new process gives an offset again, and the end does not go back."""
    clock = ManualClock()
    async with bus_factory(clock, keep_bytes=0) as bus:
        offsets = list(await bus.publish(Topic.TRAIN, numbered(5)))
        await trimmed(bus_factory, bus, clock, at_most(0))
        assert (await bus.ends(Topic.TRAIN))[0] == offsets[-1] + 1
        async with bus.subscribe([Topic.TRAIN], AtOffset(0)) as subscription:
            assert await everything(bus, [Topic.TRAIN], AtOffset(0)) == []
            offsets += await bus.publish(Topic.TRAIN, [b"again"])
            assert [record.payload for record in await read(subscription, 1)] == [b"again"]
        await trimmed(bus_factory, bus, clock, at_most(0))
    async with bus_factory(clock) as bus:
        assert (await bus.ends(Topic.TRAIN))[0] == offsets[-1] + 1
        offsets += await bus.publish(Topic.TRAIN, [b"reopened"])
        assert await payloads(bus, Topic.TRAIN) == [b"reopened"]
    assert offsets == sorted(set(offsets))


async def test_a_reader_behind_what_is_kept_goes_on_at_the_oldest(bus_factory: BusFactory) -> None:
    """Trimmed under its feet or asked for from the start: it reads on to the end, in order, and does not wait."""
    clock = ManualClock()
    async with (
        bus_factory(clock, keep_bytes=1000) as bus,
        bus.subscribe([Topic.TRAIN], Earliest()) as subscription,
    ):
        first = await bus.publish(Topic.TRAIN, [bytes(100)])
        await read(subscription, 1)
        await bus.publish(Topic.TRAIN, [bytes(100)] * 500)
        kept = await trimmed(bus_factory, bus, clock, at_most(1000))
        assert (await read_to(subscription, kept[-1].offset))[-len(kept) :] == kept
        assert await everything(bus, [Topic.TRAIN], AtOffset(first[0])) == kept


async def test_a_log_has_an_identity_that_a_log_made_anew_does_not_share(bus_factory: BusFactory) -> None:
    """Who remembers an offset can tell whether it is still an offset of the same log."""
    async with bus_factory() as first, bus_factory() as second:
        same = await first.identity()
        assert same == await second.identity()
    async with bus_factory() as again:
        assert same == await again.identity()
