"""The laws of several buses that are read as one: no bus holds up another, and nothing is lost, mixed up or repeated.

Every bus is a real embedded log; a link in front of it can be cut, or swallow what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

from telemetry_bus import federation, federation_reading
from telemetry_bus.bus import (
    WHOLE,
    AtOffset,
    Bus,
    Earliest,
    Latest,
    Positions,
    Record,
    Slice,
    Start,
    Subscription,
    open_bus,
)
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.errors import BusUnavailable, RepeatedBus
from telemetry_bus.fanout import FanOut
from telemetry_bus.federation import FederatedBus, bus_states
from telemetry_bus.federation_reading import STRIDE
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import Topic

WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


class Link:
    """A bus behind a link that can be ``cut`` (every call fails) or ``dumb`` (no call ever returns)."""

    def __init__(self, folder: Path) -> None:
        self.bus = EmbeddedBus(folder, SystemClock())
        self.url = self.bus.url
        self.cut = self.dumb = False
        self.changed = asyncio.Event()

    def set(self, *, cut: bool = False, dumb: bool = False) -> None:
        """Change the link; who reads over it learns it at once."""
        self.cut, self.dumb = cut, dumb
        self.changed.set()
        self.changed = asyncio.Event()

    async def pass_over(self) -> None:
        """What every call does first."""
        if self.cut:
            raise BusUnavailable(self.url, "answer", ConnectionError("the link is cut"))
        if self.dumb:
            await asyncio.Event().wait()

    async def __aenter__(self) -> Self:
        await self.pass_over()
        await self.bus.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.bus.__aexit__()

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        await self.pass_over()
        return await self.bus.publish(topic, payloads, key)

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AsyncIterator[Reader]:
        await self.pass_over()
        async with self.bus.subscribe(topics, start, part) as subscription:
            yield Reader(self, subscription)

    async def commit(self, group: str, positions: Positions) -> None:
        await self.pass_over()
        await self.bus.commit(group, positions)

    async def committed(self, group: str) -> Positions:
        await self.pass_over()
        return await self.bus.committed(group)

    async def identity(self) -> str:
        await self.pass_over()
        return await self.bus.identity()

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        await self.pass_over()
        return await self.bus.ends(topic)


class Reader:
    """A subscription over a link."""

    def __init__(self, link: Link, subscription: Subscription) -> None:
        self.link, self.subscription = link, subscription

    async def __aiter__(self) -> AsyncIterator[Sequence[Record]]:
        batches = aiter(self.subscription)
        following = asyncio.ensure_future(anext(batches))
        try:
            while True:
                changed = asyncio.ensure_future(self.link.changed.wait())
                await self.link.pass_over()
                await asyncio.wait({following, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                await self.link.pass_over()
                if following.done():
                    yield following.result()
                    following = asyncio.ensure_future(anext(batches))
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def caught_up(self) -> bool:
        await self.link.pass_over()
        return await self.subscription.caught_up()


@contextlib.asynccontextmanager
async def regions(folder: Path, count: int = 2) -> AsyncIterator[tuple[FederatedBus, list[Link]]]:
    """A federation over links to so many logs, home first, and the links."""
    links = [Link(folder / f"bus {number}") for number in range(count)]
    async with FederatedBus(links, SystemClock()) as bus:
        yield bus, links


async def read(subscription: Subscription, count: int) -> list[Record]:
    """The next records, as soon as there are so many."""
    records: list[Record] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for batch in subscription:
            records += batch
            if len(records) >= count:
                break
    return records


def said(records: Sequence[Record]) -> list[tuple[int, bytes]]:
    """Partition and payload of each."""
    return sorted((record.partition, record.payload) for record in records)


async def away(bus: FederatedBus, index: int, is_away: bool = True) -> None:
    """Wait until a bus is known to be away, or to be back."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (bus_states(bus)[index].away_since is not None) != is_away:
            await asyncio.sleep(0.005)


async def test_telemetry_comes_from_all_buses_and_the_rest_from_home(tmp_path: Path) -> None:
    """A region's own findings are its own affair; its rows are read, under partition numbers of their own."""
    async with regions(tmp_path) as (bus, (home, other)):
        for link, name in ((home, b"home"), (other, b"other")):
            for topic in (Topic.GPU, Topic.FINDINGS, Topic.TICKS):
                await link.publish(topic, [name])
        async with bus.subscribe((Topic.GPU, Topic.FINDINGS, Topic.TICKS), Earliest()) as subscription:
            records = await read(subscription, 4)
            assert await subscription.caught_up()
        assert said([r for r in records if r.topic is Topic.GPU]) == [(0, b"home"), (STRIDE, b"other")]
        assert said([r for r in records if r.topic is not Topic.GPU]) == [(0, b"home")] * 2
        assert (await bus.ends(Topic.GPU)).keys() == {0, STRIDE}
        assert (await bus.ends(Topic.TICKS)).keys() == {0}


async def test_what_is_written_is_written_at_home(tmp_path: Path) -> None:
    """Nothing is ever published into another region."""
    async with regions(tmp_path) as (bus, (home, other)):
        await bus.publish(Topic.GPU, [b"row"])
        assert (await home.ends(Topic.GPU))[0] > 0
        assert (await other.ends(Topic.GPU))[0] == 0


async def test_a_position_is_committed_on_the_bus_that_it_is_of(tmp_path: Path) -> None:
    """Who reads one region alone later goes on where the federation was."""
    async with regions(tmp_path) as (bus, (home, other)):
        await bus.commit("group", {Topic.GPU: {0: 5, STRIDE: 7}, Topic.TICKS: {0: 3}})
        assert await home.committed("group") == {Topic.GPU: {0: 5}, Topic.TICKS: {0: 3}}
        assert await other.committed("group") == {Topic.GPU: {0: 7}}
        assert await bus.committed("group") == {Topic.GPU: {0: 5, STRIDE: 7}, Topic.TICKS: {0: 3}}


async def test_two_commits_of_one_group_may_be_under_way_at_once(tmp_path: Path) -> None:
    """Whoever is second finds that the first has told the other bus all there was to tell."""
    async with regions(tmp_path) as (bus, (home, other)):
        await asyncio.gather(*(bus.commit("group", {Topic.GPU: {0: at, STRIDE: at}}) for at in (5, 6)))
        assert await home.committed("group") == {Topic.GPU: {0: 6}}
        assert await other.committed("group") == {Topic.GPU: {0: 6}}


async def test_a_bus_that_is_cut_off_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    """The others go on meanwhile; afterwards nothing is missing and nothing comes twice."""
    async with regions(tmp_path) as (bus, (home, other)), bus.subscribe((Topic.GPU,), Latest()) as subscription:
        await other.publish(Topic.GPU, [b"before"])
        assert said(await read(subscription, 1)) == [(STRIDE, b"before")]
        other.set(cut=True)
        await away(bus, 1)
        await other.bus.publish(Topic.GPU, [b"meanwhile"])
        await home.publish(Topic.GPU, [b"at home"])
        assert said(await read(subscription, 1)) == [(0, b"at home")]
        assert await subscription.caught_up()
        other.set()
        assert said(await read(subscription, 1)) == [(STRIDE, b"meanwhile")]
        assert bus_states(bus)[1].away_since is None


async def test_home_may_be_cut_off_while_the_regions_are_read(tmp_path: Path) -> None:
    """A page over all regions does not go dark with one of them, whichever it is."""
    async with regions(tmp_path) as (bus, (home, other)), bus.subscribe((Topic.GPU,), Latest()) as subscription:
        home.set(cut=True)
        await away(bus, 0)
        await other.publish(Topic.GPU, [b"row"])
        assert said(await read(subscription, 1)) == [(STRIDE, b"row")]
        with pytest.raises(BusUnavailable):
            await bus.publish(Topic.GPU, [b"row"])


async def test_a_bus_that_is_away_at_the_start_is_read_from_the_start(tmp_path: Path) -> None:
    """What it took since the subscription began comes once it is there, though "the latest" was asked for."""
    links = [Link(tmp_path / name) for name in ("home", "other")]
    links[1].set(cut=True)
    async with FederatedBus(links, SystemClock()) as bus, bus.subscribe((Topic.GPU,), Latest()) as subscription:
        state = bus_states(bus)[1]
        assert state.away_since is not None
        assert state.problem is not None
        assert "the link is cut" in state.problem
        assert await subscription.caught_up()
        async with EmbeddedBus(tmp_path / "other", SystemClock()) as beside:
            await beside.publish(Topic.GPU, [b"since"])
        links[1].set()
        assert said(await read(subscription, 1)) == [(STRIDE, b"since")]


async def test_a_bus_that_never_answers_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends, positions and "caught up" are those of the others, after one short wait; what was committed is told
    later."""
    for module in (federation, federation_reading):
        monkeypatch.setattr(module, "ANSWER_SECONDS_MAX", 0.05)
    async with regions(tmp_path) as (bus, (home, other)):
        await home.publish(Topic.GPU, [b"row"])
        other.set(dumb=True)
        async with asyncio.timeout(WAIT_SECONDS), bus.subscribe((Topic.GPU,), Earliest()) as subscription:
            assert said(await read(subscription, 1)) == [(0, b"row")]
            assert await subscription.caught_up()
            assert (await bus.ends(Topic.GPU)).keys() == {0}
            await bus.commit("group", {Topic.GPU: {0: 5, STRIDE: 7}})
            assert await bus.committed("group") == {Topic.GPU: {0: 5}}
        other.set()
        monkeypatch.setattr(federation_reading, "ASK_AGAIN_SECONDS", 0.0)
        bus.members[1].is_away(TimeoutError())
        assert bus_states(bus)[1].problem == f"no answer within {federation_reading.ANSWER_SECONDS_MAX:g} s"
        await bus.commit("group", {Topic.GPU: {0: 6}})
        assert await other.committed("group") == {Topic.GPU: {0: 7}}


async def test_where_no_bus_can_be_reached_the_reader_is_told(tmp_path: Path) -> None:
    """That is an outage as of any bus: the reader tries again, and knows."""
    async with regions(tmp_path) as (bus, links), bus.subscribe((Topic.GPU,), Latest()) as subscription:
        for link in links:
            link.set(cut=True)
        with pytest.raises(BusUnavailable, match="none of its buses"):
            await read(subscription, 1)


async def test_slices_share_all_partitions_of_all_buses(tmp_path: Path) -> None:
    """Every record of telemetry goes to exactly one slice, a tick to each, by the number that it has here."""
    async with regions(tmp_path, 3) as (bus, links):
        for link in links:
            await link.publish(Topic.GPU, [b"row"])
        await bus.publish(Topic.TICKS, [b"tick"])
        got = []
        for index in range(2):
            async with bus.subscribe((Topic.GPU, Topic.TICKS), Earliest(), Slice(index, 2)) as subscription:
                expected = [at for at in range(3) if at % 2 == index]
                records = await read(subscription, len(expected) + 1)
                assert [r.topic for r in records].count(Topic.TICKS) == 1
                got += [record.partition for record in records if record.topic is Topic.GPU]
                assert Slice(index, 2).among(await bus.ends(Topic.GPU)) == [STRIDE * at for at in expected]
        assert sorted(got) == [0, STRIDE, 2 * STRIDE]


async def test_an_offset_by_partition_is_that_of_its_bus(tmp_path: Path) -> None:
    """Reading resumes on every bus at its own place."""
    async with regions(tmp_path) as (bus, links):
        ends = []
        for link in links:
            ends.append((await link.publish(Topic.GPU, [b"old"]))[-1] + 1)
            await link.publish(Topic.GPU, [b"new"])
        start = AtOffset(partitions={0: ends[0], STRIDE: ends[1]})
        async with bus.subscribe((Topic.GPU,), start) as subscription:
            assert said(await read(subscription, 2)) == [(0, b"new"), (STRIDE, b"new")]


async def test_the_fan_out_serves_all_regions_and_a_cursor_names_them(tmp_path: Path) -> None:
    """One ring for all buses, and one cursor."""
    async with regions(tmp_path) as (bus, links), FanOut(bus, [Topic.GPU], start=Earliest()) as fan:
        await fan.caught_up()
        with fan.oldest(Topic.GPU) as reader:
            for link in links:
                await link.publish(Topic.GPU, [b"row"])
            async with asyncio.timeout(WAIT_SECONDS):
                items = [await anext(reader) for _ in links]
            assert {item.partition for item in items if isinstance(item, Record)} == {0, STRIDE}
            assert reader.cursor.keys() == {0, STRIDE}


def test_several_urls_with_a_bar_between_are_a_federation(tmp_path: Path) -> None:
    """Home is the first; a comma is between the brokers of one cluster, a bar between buses."""
    urls = [(tmp_path / name).as_uri() for name in ("a", "b|c")]
    bus: Bus = open_bus(" | ".join(urls), SystemClock())
    assert [state.url for state in bus_states(bus)] == urls
    assert bus_states(open_bus(urls[0], SystemClock())) == []


def test_a_bus_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """Its rows would be read twice."""
    with pytest.raises(RepeatedBus, match="listed twice"):
        open_bus(f"{tmp_path.as_uri()}|{tmp_path.as_uri()}", SystemClock())
