"""The broker stops, is killed and comes back: nothing acknowledged is lost, and whoever waits is told in time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from app.bench.kafka_broker import KafkaBroker, free_port
from telemetry_bus import AtOffset, BusUnavailable, Earliest, Topic
from telemetry_bus.kafka import KafkaBus, KafkaOptions, create_topics
from telemetry_bus.kafka.settings import SEND_QUEUE_BYTES_MAX
from telemetry_bus.runtime.clock import SystemClock
from tests.telemetry_bus.kafka.reading import WAIT_SECONDS, everything

PATIENCE = KafkaOptions(produce_timeout_seconds=1.0)
"""How long these buses wait for a cluster that is away."""


@pytest.fixture
async def broker(own_broker: KafkaBroker) -> AsyncIterator[KafkaBroker]:
    """Return a running broker with topics."""
    async with own_broker as running:
        await create_topics(f"kafka://{running.bootstrap}", KafkaOptions(), partitions=2)
        yield running


def bus_at(broker: KafkaBroker) -> KafkaBus:
    """A bus of a broker."""
    return KafkaBus(f"kafka://{broker.bootstrap}", SystemClock(), PATIENCE)


class Traffic:
    """One that sends numbers until it is told to end, and one that reads them, however often the bus is away."""

    def __init__(self, bus: KafkaBus) -> None:
        self._bus = bus
        self.ending = False
        self.acknowledged: list[bytes] = []
        self.refused: list[float] = []
        self.read: list[bytes] = []

    async def send(self) -> None:
        """Send each number once; note whether it was acknowledged, or after how many seconds it was refused."""
        clock = SystemClock()
        for number in itertools.count():
            began = clock.monotonic()
            try:
                await self._bus.publish(Topic.GPU, [str(number).encode()], "node-1")
                self.acknowledged.append(str(number).encode())
            except BusUnavailable:
                self.refused.append(clock.monotonic() - began)
            if self.ending:
                break
        await self._bus.publish(Topic.GPU, [b"the last"], "node-1")

    async def receive(self) -> None:
        """Read to the last, and go on where it was when the bus has been away."""
        following: dict[int, int] = {0: 0, 1: 0}
        while b"the last" not in self.read:
            try:
                async with self._bus.subscribe([Topic.GPU], AtOffset(partitions=dict(following))) as subscription:
                    while b"the last" not in self.read:
                        for record in await anext(aiter(subscription)):
                            self.read.append(record.payload)
                            following[record.partition] = record.offset + 1
            except BusUnavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_broker_that_goes_and_comes_back_has_what_was_acknowledged_and_everybody_goes_on(
    broker: KafkaBroker, how: str
) -> None:
    """Meanwhile each publish is refused in bounded time; then the same bus works, and no number comes twice."""
    async with asyncio.timeout(WAIT_SECONDS), bus_at(broker) as bus, asyncio.TaskGroup() as tasks:
        traffic = Traffic(bus)
        tasks.create_task(traffic.send())
        tasks.create_task(traffic.receive())
        while len(traffic.acknowledged) < 20:
            await asyncio.sleep(0.01)
        await (broker.kill() if how == "killed" else broker.stop())
        while len(traffic.refused) < 2:
            await asyncio.sleep(0.01)
        await broker.start()
        before = len(traffic.acknowledged)
        while len(traffic.acknowledged) < before + 20:
            await asyncio.sleep(0.01)
        traffic.ending = True
    assert max(traffic.refused) < 3 * PATIENCE.timeout_seconds
    acknowledged = {*traffic.acknowledged, b"the last"}
    assert [payload for payload in traffic.read if payload in acknowledged] == [*traffic.acknowledged, b"the last"]


async def test_everything_of_a_bus_that_is_away_fails_in_bounded_time_and_works_once_it_is_there(
    own_broker: KafkaBroker,
) -> None:
    """A bus can be opened while its cluster is away: a collector must start then, to spool."""
    clock = SystemClock()

    async def subscribe(bus: KafkaBus) -> None:
        async with bus.subscribe([Topic.GPU], Earliest()):
            pass

    async with bus_at(own_broker) as bus:
        calls = (
            bus.publish(Topic.GPU, [b"frame"]),
            subscribe(bus),
            bus.commit("detect", {Topic.GPU: {0: 1}}),
            bus.committed("detect"),
            bus.identity(),
            bus.ends(Topic.GPU),
        )
        began = clock.monotonic()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, BusUnavailable)
            assert "Connection refused" in str(answer)
        assert clock.monotonic() - began < 3 * PATIENCE.timeout_seconds
        async with own_broker:
            await create_topics(bus.url, KafkaOptions(), partitions=2)
            await bus.publish(Topic.GPU, [b"frame"])
            assert [record.payload for record in await everything(bus, [Topic.GPU])] == [b"frame"]
            await bus.commit("detect", {Topic.GPU: {0: 1}})
            assert await bus.committed("detect") == {Topic.GPU: {0: 1}}


async def test_what_waits_for_a_bus_that_is_away_is_bounded_in_bytes() -> None:
    """A sender that does not wait for its answers is refused at once, and closing takes no longer than they do."""
    clock = SystemClock()
    async with KafkaBus(f"kafka://127.0.0.1:{free_port()}", clock, PATIENCE) as bus:
        assert bus._publisher is not None
        bus._publisher._counts["telemetry.gpu"] = (1, clock.monotonic())
        payload = bytes(8 * 1024 * 1024)
        room = SEND_QUEUE_BYTES_MAX // len(payload)
        answers = await asyncio.gather(
            *(bus.publish(Topic.GPU, [payload]) for _ in range(room + 2)), return_exceptions=True
        )
        assert all(isinstance(answer, BusUnavailable) for answer in answers)
        assert len([answer for answer in answers if "bytes wait to be acknowledged" in str(answer)]) == 2
    assert bus._publisher is None
