"""The bus on a Kafka-protocol cluster as the rest of the system sees it."""

import asyncio
import contextlib
import math
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from telemetry_bus.bus import WHOLE, AtOffset, AtTime, Earliest, Latest, Positions, Slice, Start
from telemetry_bus.errors import BusClosed, BusUnavailable, InvalidPayload
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.kafka import positions as kept
from telemetry_bus.kafka import settings
from telemetry_bus.kafka.address import POSITIONS, parse
from telemetry_bus.kafka.driver import END, START, Administrator, Consumer, Faults, Spot
from telemetry_bus.kafka.order import Lane, TimeOrder
from telemetry_bus.kafka.publisher import Publisher
from telemetry_bus.kafka.subscription import KafkaSubscription
from telemetry_bus.kafka_options import KafkaOptions
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import Topic

PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX
"""No reader would take a larger one."""
LOOK_SECONDS = 0.1
LOOK_RECORDS = 10_000
"""Of the topic positions, whose records have some hundred bytes."""
ASK_THREADS = 4
"""Questions to a cluster that is away block a thread for seconds each: not one that others wait for."""

T = TypeVar("T")


class KafkaBus:
    """The log on a cluster. ``options`` say how it is spoken to; ``clock`` only measures durations here.

    It can be opened while the cluster is away: every call then says so, and works once the cluster is there.
    """

    def __init__(self, url: str, clock: Clock, options: KafkaOptions | None = None) -> None:
        self._address = parse(url)
        self.url = str(self._address)
        self._options = KafkaOptions() if options is None else options
        self._clock = clock
        self._threads = ThreadPoolExecutor(ASK_THREADS, thread_name_prefix="nantucket-kafka-asker")
        self._publisher: Publisher | None = None
        self._administrator: Administrator | None = None
        self._administrating = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Open it. Nothing is sent yet."""
        self._publisher = Publisher(
            self._connection() | settings.producer(self._options),
            self.url,
            self._clock,
            self._options.timeout_seconds,
            self._threads,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Wait until what is under way is durable or has failed, and close."""
        publisher, self._publisher = self._publisher, None
        administrator, self._administrator = self._administrator, None
        if publisher is not None:
            await publisher.close()
        if administrator is not None:
            await self._in_thread(administrator.close)

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> Sequence[int]:
        """Append ``payloads`` to the partition that ``key`` chooses; their offsets once all replicas have them."""
        publisher = self._opened(f"publish to {topic}")
        _check_payloads(topic, payloads)
        if not payloads:
            return []
        return await publisher.publish(self._address.name(topic), payloads, zlib.crc32(key.encode()))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: Sequence[Topic], start: Start | Mapping[Topic, Start], part: Slice = WHOLE
    ) -> AsyncIterator[KafkaSubscription]:
        """Read ``part`` of the partitions of ``topics`` in about the order of the bus's time."""
        self._check_open("read")
        starts = start if isinstance(start, Mapping) else dict.fromkeys(topics, start)
        names = {topic: self._address.name(topic) for topic in topics}
        counts = await self._ask(lambda administrator: administrator.partitions(list(names.values())))
        lanes: dict[Spot, Lane] = {
            (names[topic], partition): (topic, partition)
            for topic in topics
            for partition in part.of(counts[names[topic]])
        }
        first, ends = await self._ask(lambda administrator: _first(administrator, lanes, starts))
        order = TimeOrder({lane: max(0, first[spot]) for spot, lane in lanes.items()})
        for spot, end in ends.items():
            order.reached(lanes[spot], end)
        consumer = await self._in_thread(lambda: self._consumer(first))
        subscription = KafkaSubscription(
            consumer,
            lanes,
            order,
            url=self.url,
            clock=self._clock,
            counts=counts,
            check_open=lambda: self._check_open("read"),
            ends=lambda spots: self._ask(lambda administrator: administrator.ends(spots)),
        )
        try:
            yield subscription
        finally:
            await subscription.close()

    async def commit(self, group: str, positions: Positions) -> None:
        """Remember durably how far ``group`` has come."""
        publisher = self._opened(f"commit for {group}")
        kept.checked(group, positions)
        name, key = self._address.name(POSITIONS), kept.commit_key(group, positions)
        await publisher.append(name, kept.commit_value(positions), key)

    async def committed(self, group: str) -> Positions:
        """How far ``group`` has come, by the largest offset that any of its members has committed."""
        self._check_open(f"read the positions of {group}")
        return (await self._folded()).groups.get(group, {})

    async def identity(self) -> str:
        """Which log this is: the UUID that came first in its topic of positions."""
        publisher = self._opened("say which log it is")
        if (found := (await self._folded()).identity) is not None:
            return found
        await publisher.append(self._address.name(POSITIONS), b"", kept.identity_key())
        found = (await self._folded()).identity
        assert found is not None, "one was just written"
        return found

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """For every partition the offset that follows its newest record."""
        self._check_open("read")
        name = self._address.name(topic)
        count = (await self._ask(lambda administrator: administrator.partitions([name])))[name]
        spots = [(name, partition) for partition in range(count)]
        found = await self._ask(lambda administrator: administrator.ends(spots))
        if silent := [partition for _, partition in spots if (name, partition) not in found]:
            raise BusUnavailable(self.url, f"say where {name} ends", f"its partitions {silent} do not answer")
        return {partition: found[name, partition] for _, partition in spots}

    async def _folded(self) -> kept.Folded:
        name = self._address.name(POSITIONS)
        await self._ask(lambda administrator: administrator.partitions([name]))
        spot = (name, 0)
        end = (await self._ask(lambda administrator: administrator.ends([spot])))[spot]
        start = (await self._ask(lambda administrator: administrator.starts([spot])))[spot]
        return await self._in_thread(lambda: self._fold(spot, start, end))

    def _fold(self, spot: Spot, start: int, end: int) -> kept.Folded:
        folded = kept.Folded()
        if start >= end:
            return folded
        deadline = self._clock.monotonic() + self._options.timeout_seconds
        consumer = self._consumer({spot: start})
        try:
            position = start
            while position < end:
                found = consumer.fetch(LOOK_SECONDS, LOOK_RECORDS)
                for _, _, offset, _, key, value in found.records:
                    folded.take(key, value)
                    position = offset + 1
                position = max(position, found.ends.get(spot, 0))
                if position < end and self._clock.monotonic() > deadline:
                    raise BusUnavailable(self.url, "read positions", f"only {position} of {end} records came in time")
        finally:
            consumer.close()
        return folded

    def _consumer(self, first: Mapping[Spot, int]) -> Consumer:
        return Consumer(self._connection() | settings.consumer(self._options), Faults(self.url), first)

    def _connection(self) -> dict[str, settings.Setting]:
        return settings.connection(self._address.servers, self._options)

    async def _ask(self, question: Callable[[Administrator], T]) -> T:
        async with self._administrating:
            if self._administrator is None:
                self._administrator = await self._in_thread(
                    lambda: Administrator(self._connection(), Faults(self.url), self._options.timeout_seconds)
                )
            administrator = self._administrator
        return await self._in_thread(lambda: question(administrator))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _check_open(self, action: str) -> None:
        self._opened(action)

    def _opened(self, action: str) -> Publisher:
        if self._publisher is None:
            raise BusClosed(self.url, action)
        return self._publisher


def _check_payloads(topic: Topic, payloads: Sequence[bytes]) -> None:
    for position, payload in enumerate(payloads):
        if not isinstance(payload, bytes):
            raise InvalidPayload(topic, position, f"expected bytes, found {type(payload).__name__}")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise InvalidPayload(topic, position, f"it has {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} are taken")


def _first(
    administrator: Administrator, lanes: Mapping[Spot, Lane], starts: Mapping[Topic, Start]
) -> tuple[dict[Spot, int], dict[Spot, int]]:
    """Where each lane begins, and where it ended when it was asked.

    Ends come first, so that nothing is missed that is appended meanwhile. A partition that does not answer just now
    begins at its end, or at its beginning, when it does: it must not hold up the others.
    """
    ends = administrator.ends(lanes)
    oldest = administrator.starts(spot for spot, (topic, _) in lanes.items() if not isinstance(starts[topic], Latest))
    first: dict[Spot, int] = {}
    for topic, start in starts.items():
        spots = [spot for spot, lane in lanes.items() if lane[0] is topic]
        match start:
            case AtOffset(offset, partitions):
                for spot in spots:
                    wanted = offset if partitions is None else partitions.get(spot[1], 0)
                    # Beyond the end there is another log than the one that gave the offset: all of it is new.
                    within = wanted <= ends.get(spot, wanted)
                    first[spot] = max(wanted if within else 0, oldest.get(spot, 0))
            case Earliest():
                first |= {spot: oldest.get(spot, START) for spot in spots}
            case AtTime(time):
                found = administrator.at_time(spots, math.ceil(round(time * 1000, 3)))
                first |= {spot: found[spot] if found.get(spot, -1) >= 0 else ends.get(spot, END) for spot in spots}
            case _:
                first |= {spot: ends.get(spot, END) for spot in spots}
    return first, ends
