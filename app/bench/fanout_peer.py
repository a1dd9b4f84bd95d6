"""``bench fanout --peer kafka``: what the readers cost a broker that they all read themselves, and behind our fan-out.

The broker is a real Apache Kafka. Its bytes are the operating system's: what its process has written, to sockets and to
its log; what it writes while nobody reads is taken off.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.bench.kafka_broker import KafkaBroker
from app.processes import Talking, talking

CONSUMERS_MAX = 50
"""Consumers that are really started: each has threads and connections of its own, and two cores carry no thousand. What
the broker sends grows in proportion to them; both are told, the measured figure and the one for all readers."""
READY_SECONDS = 60.0
PARTITIONS = 4


def written_bytes(pid: int) -> int:
    """What a process has written so far, wherever: `wchar` counts sendfile, by which Kafka answers a fetch."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


@contextlib.asynccontextmanager
async def broker_bus(folder: Path) -> AsyncIterator[tuple[KafkaBroker, str]]:
    """A broker with our topics; gives it and its URL as a bus."""
    async with KafkaBroker(folder / "kafka") as broker:
        url = f"kafka://{broker.bootstrap}"
        command = ["app.cli", "bus", "init", "--bus", url, "--partitions", str(PARTITIONS), "--state", str(folder)]
        async with talking("nantucket bus init", [*command, "--json"]) as init:
            await init.process.wait()
        yield broker, url


async def idle_bytes(broker: KafkaBroker, seconds: float) -> int:
    """What the broker writes while nobody reads: its log."""
    assert broker.pid is not None
    before = written_bytes(broker.pid)
    await asyncio.sleep(seconds)
    return written_bytes(broker.pid) - before


async def consumers_read(broker: KafkaBroker, readers: int, seconds: float) -> dict[str, Any]:
    """What the broker writes while consumers read the topic themselves."""
    count = min(readers, CONSUMERS_MAX)
    command = ["app.bench.fanout_consumers", "--bus", f"kafka://{broker.bootstrap}"]
    command += ["--consumers", str(count), "--seconds", str(seconds)]
    async with talking("the consumers", command, keep_stdin=True) as consumers:
        written = await _while_measured(consumers, broker, seconds)
        said = await consumers.line(lambda line: "messages" in line, READY_SECONDS)
        await consumers.say("\n")
    return {"consumers": count, "messages": said["messages"], "broker_bytes": written}


async def readers_read(broker: KafkaBroker, reading: Talking, seconds: float) -> int:
    """What the broker writes while the readers of ``bench fanout`` read our server."""
    return await _while_measured(reading, broker, seconds)


async def _while_measured(talker: Talking, broker: KafkaBroker, seconds: float) -> int:
    assert broker.pid is not None
    await talker.line(lambda line: line.get("measuring"), READY_SECONDS)
    before = written_bytes(broker.pid)
    await talker.line(lambda line: line.get("measured"), seconds + READY_SECONDS)
    return written_bytes(broker.pid) - before
