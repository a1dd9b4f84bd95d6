"""What one process sends: bounded in bytes, durable or an error within a bounded time, and mended where it breaks."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

from telemetry_bus.errors import BusError, BusUnavailable
from telemetry_bus.kafka.driver import Faults, Producer, ProducerFailed
from telemetry_bus.kafka.settings import SEND_QUEUE_BYTES_MAX, Setting
from telemetry_bus.runtime.clock import Clock

COUNT_SECONDS = 60.0
"""How old the known number of a topic's partitions may be before it is asked for again, beside the work."""

ANSWER_EXTRA_SECONDS = 2.0
"""A message times out in the driver, which then says so; where it does not, its fault leaves nobody waiting."""


class Publisher:
    """The producer of a bus, made with the first message: a bus can be opened while its cluster is away."""

    def __init__(
        self, settings: dict[str, Setting], url: str, clock: Clock, timeout_seconds: float, threads: Executor
    ) -> None:
        self._settings, self._url, self._clock, self._timeout_seconds = settings, url, clock, timeout_seconds
        self._threads = threads
        self._producer: Producer | None = None
        self._making = asyncio.Lock()
        self._counts: dict[str, tuple[int, float]] = {}
        self._asking: dict[str, asyncio.Future[int]] = {}
        self._bytes_under_way = 0
        self._calls_under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def publish(self, topic: str, payloads: Sequence[bytes], crc: int) -> list[int]:
        """Append to the partition that ``crc`` chooses, and return the offsets once they are durable."""
        with self._under_way():
            producer = await self._made()
            partition = crc % await self._partitions(producer, topic)
            return await self._send(producer, topic, partition, payloads)

    async def append(self, topic: str, payload: bytes, key: bytes) -> None:
        """Append one message with a key to a topic of one partition."""
        with self._under_way():
            producer = await self._made()
            await self._partitions(producer, topic)  # a topic that is missing is said at once
            await self._send(producer, topic, 0, [payload], key)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        self._calls_under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls_under_way -= 1
            if self._calls_under_way == 0:
                self._idle.set()

    async def close(self) -> None:
        """Wait, for a bounded time, until what is under way is durable or has failed."""
        await self._idle.wait()  # every step of a call is bounded
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await asyncio.to_thread(producer.close)

    async def _made(self) -> Producer:
        async with self._making:
            if self._producer is None:
                self._producer = await asyncio.to_thread(Producer, self._settings, Faults(self._url))
            return self._producer

    async def _send(
        self, producer: Producer, topic: str, partition: int, payloads: Sequence[bytes], key: bytes | None = None
    ) -> list[int]:
        size = sum(map(len, payloads))
        if self._bytes_under_way and self._bytes_under_way + size > SEND_QUEUE_BYTES_MAX:
            waiting = f"{self._bytes_under_way} bytes wait to be acknowledged, at most {SEND_QUEUE_BYTES_MAX} may"
            raise BusUnavailable(self._url, f"publish to {topic}", waiting)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[list[int]] = loop.create_future()

        def settle(result: list[int] | BusError) -> None:
            self._bytes_under_way -= size
            if answered.done():
                return  # whoever waited was cancelled; what is written stays written
            if isinstance(result, BusError):
                answered.set_exception(result)
            else:
                answered.set_result(result)

        self._bytes_under_way += size
        producer.send(topic, partition, payloads, lambda result: _in_loop(loop, settle, result), key)
        try:
            async with asyncio.timeout(self._timeout_seconds + ANSWER_EXTRA_SECONDS):
                return await answered
        except ProducerFailed:
            await self._replace(producer)
            raise
        except TimeoutError as error:
            await self._replace(producer)
            raise BusUnavailable(self._url, f"publish to {topic}", "its client does not answer") from error

    async def _replace(self, broken: Producer) -> None:
        """The next call makes a new one."""
        if self._producer is broken:
            self._producer = None
            await asyncio.to_thread(broken.close)

    async def _partitions(self, producer: Producer, topic: str) -> int:
        count, asked_at = self._counts.get(topic, (0, 0.0))
        if count and self._clock.monotonic() - asked_at < COUNT_SECONDS:
            return count
        asking = self._asking.get(topic)
        if asking is None:
            asking = asyncio.get_running_loop().run_in_executor(None, producer.partitions, topic, self._timeout_seconds)
            self._asking[topic] = asking
            asking.add_done_callback(lambda done: self._counted(topic, done))
        return count or await asyncio.shield(asking)

    def _counted(self, topic: str, done: asyncio.Future[int]) -> None:
        del self._asking[topic]
        if not done.cancelled() and done.exception() is None:
            self._counts[topic] = (done.result(), self._clock.monotonic())


def _in_loop(
    loop: asyncio.AbstractEventLoop, settle: Callable[[list[int] | BusError], None], result: list[int] | BusError
) -> None:
    try:
        loop.call_soon_threadsafe(settle, result)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
