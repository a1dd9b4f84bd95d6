"""A cluster that takes half a second to acknowledge, as one on an object store does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from telemetry_bus import Latest, Topic
from telemetry_bus.kafka import KafkaBus
from telemetry_bus.kafka_options import KafkaOptions, ProfileName
from telemetry_bus.runtime.clock import SystemClock
from tests.telemetry_bus.kafka.reading import WAIT_SECONDS

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService

DELAY_SECONDS = 0.5
CHUNK_BYTES = 64 * 1024


@contextlib.asynccontextmanager
async def slow_way(kafka: KafkaService) -> AsyncIterator[str]:
    """A proxy that passes on every answer of the broker half a second late, however many are under way."""

    ends: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", kafka.far_port)
        ends.extend((writer, broker_writer))
        await asyncio.gather(
            _pass_on(reader, broker_writer, 0.0),
            _pass_on(broker_reader, writer, DELAY_SECONDS),
        )

    server = await asyncio.start_server(serve, "127.0.0.1", kafka.proxy_port)
    try:
        yield f"127.0.0.1:{kafka.proxy_port}"
    finally:
        server.close()
        for end in ends:
            end.close()
        for end in ends:
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            loop.call_later(delay_seconds, _write, writer, chunk)
    loop.call_later(delay_seconds, writer.close)


def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    if not writer.is_closing():
        writer.write(chunk)


@pytest.mark.parametrize("profile", ["default", "warpstream"])
async def test_a_frame_is_acknowledged_and_read_in_little_more_than_the_clusters_own_delay(
    kafka: KafkaService, profile: ProfileName
) -> None:
    """What half a second costs is half a second, for the sender and for the reader."""
    clock, prefix = SystemClock(), kafka.url(partitions=2).rpartition("/")[2]
    async with asyncio.timeout(WAIT_SECONDS), slow_way(kafka) as address:
        options = KafkaOptions(profile=profile)
        async with (
            KafkaBus(f"kafka://{address}/{prefix}", clock, options) as bus,
            bus.subscribe([Topic.GPU], Latest()) as subscription,
        ):
            await bus.publish(Topic.GPU, [b"first: connections are made"])
            batches = aiter(subscription)
            await anext(batches)
            began = clock.monotonic()
            await bus.publish(Topic.GPU, [b"frame"])
            acknowledged = clock.monotonic() - began
            await anext(batches)
            read = clock.monotonic() - began
    assert DELAY_SECONDS <= acknowledged < DELAY_SECONDS + 0.5
    assert read < 2 * DELAY_SECONDS + 0.5


async def test_with_the_profile_for_object_stores_many_requests_are_under_way_at_once(kafka: KafkaService) -> None:
    """A sender that publishes every 50 ms to one partition does not queue up behind half-second answers."""
    clock, prefix = SystemClock(), kafka.url(partitions=1).rpartition("/")[2]
    waits: list[float] = []
    async with asyncio.timeout(WAIT_SECONDS), slow_way(kafka) as address:
        options = KafkaOptions(profile="warpstream")

        async def send(bus: KafkaBus) -> None:
            began = clock.monotonic()
            await bus.publish(Topic.GPU, [bytes(1000)])
            waits.append(clock.monotonic() - began)

        async with KafkaBus(f"kafka://{address}/{prefix}", clock, options) as bus:
            await send(bus)
            waits.clear()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(40):
                    tasks.create_task(send(bus))
                    await asyncio.sleep(0.05)
    assert len(waits) == 40
    assert max(waits) < DELAY_SECONDS + 0.5
