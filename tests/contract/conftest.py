"""Where the contract suites get their implementations."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from telemetry_bus import Bus, Earliest, Topic
from telemetry_bus.embedded import EmbeddedBus, TopicLimit
from telemetry_bus.federation import FederatedBus
from telemetry_bus.kafka import KafkaBus
from telemetry_bus.runtime.clock import Clock, ManualClock, SystemClock

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService

REPOSITORY = Path(__file__).resolve().parents[2]
KEEP_BYTES = 1 << 40
KEEP_SECONDS = 1e9
WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


class BusFactory(Protocol):
    """A fresh place for a bus; every call gives another, unopened bus in that one place."""

    url: str

    def __call__(
        self, clock: Clock | None = None, *, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS
    ) -> Bus:
        """Return a bus, to be opened with `async with`, that keeps so much of each topic."""
        ...

    async def pass_time(self, clock: ManualClock) -> None:
        """Let the bus's own clock go on, which is `clock` where the bus has no other."""
        ...

    async def trim(self, bus: Bus, clock: ManualClock) -> None:
        """Let the bus trim some of what is beyond its bound."""
        ...


class EmbeddedFactory:
    """Embedded buses in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = folder.as_uri()

    def __call__(
        self, clock: Clock | None = None, *, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS
    ) -> Bus:
        """Return a bus, to be opened with `async with`, that keeps so much of each topic."""
        limits = dict.fromkeys(Topic, TopicLimit(keep_bytes, keep_seconds))
        return EmbeddedBus(self._folder, SystemClock() if clock is None else clock, limits)

    async def pass_time(self, clock: ManualClock) -> None:
        """Move the clock."""
        clock.advance(10.0)

    async def trim(self, bus: Bus, clock: ManualClock) -> None:
        """Use the bus when it is time to trim."""
        clock.advance(6.0)
        await bus.commit("whoever", {Topic.GPU: {0: 1}})


class FederatedFactory(EmbeddedFactory):
    """Federations of embedded buses, so many of them; home is in the folder itself."""

    def __init__(self, folder: Path, others: int = 0) -> None:
        super().__init__(folder)
        self._others = [EmbeddedFactory(folder.with_name(f"region {number}")) for number in range(others)]
        self.url = "|".join([self.url, *(other.url for other in self._others)])

    def __call__(
        self, clock: Clock | None = None, *, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS
    ) -> Bus:
        """Return a bus, to be opened with `async with`, of which each part keeps so much of each topic."""
        made = SystemClock() if clock is None else clock
        buses = [EmbeddedFactory.__call__(self, made, keep_bytes=keep_bytes, keep_seconds=keep_seconds)]
        buses += [other(made, keep_bytes=keep_bytes, keep_seconds=keep_seconds) for other in self._others]
        return FederatedBus(buses, made)


class KafkaFactory:
    """Buses under one prefix of a real Kafka."""

    def __init__(self, kafka: KafkaService) -> None:
        self._kafka = kafka
        self._keep_bytes = KEEP_BYTES
        self.url = kafka.url(partitions=2)

    def __call__(
        self, clock: Clock | None = None, *, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS
    ) -> Bus:
        """Return a bus, to be opened with `async with`. How long it keeps records is the cluster's affair."""
        self._keep_bytes = keep_bytes
        return KafkaBus(self.url, SystemClock() if clock is None else clock)

    async def pass_time(self, clock: ManualClock) -> None:
        """Wait until the broker's clock, which counts milliseconds, must show another one."""
        await asyncio.sleep(0.005)

    async def trim(self, bus: Bus, clock: ManualClock) -> None:
        """Have the broker delete what is beyond the bound, as its retention does: whole records, oldest first."""
        sizes: list[tuple[int, int]] = []
        async with bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
            while not await subscription.caught_up():
                sizes += [(record.offset, len(record.payload)) for record in await anext(aiter(subscription))]
        kept, end = 0, (await bus.ends(Topic.TRAIN))[0]
        for offset, size in reversed(sizes):
            kept += size
            if kept > self._keep_bytes:
                break
            end = offset
        topic = f"{self.url.rpartition('/')[2]}.{Topic.TRAIN}"
        client = AdminClient({"bootstrap.servers": self._kafka.bootstrap})
        for future in client.delete_records([TopicPartition(topic, 0, end)]).values():
            await asyncio.to_thread(future.result)


def _federation_of_two(folder: Path) -> EmbeddedFactory:
    return FederatedFactory(folder, others=1)


@pytest.fixture(params=["embedded", "kafka", "federation of one", "federation of two"])
def bus_factory(request: pytest.FixtureRequest, tmp_path: Path) -> BusFactory:
    """Return a fresh place of each implementation of the bus."""
    if request.param == "kafka":
        return KafkaFactory(request.getfixturevalue("kafka"))
    kinds: dict[str, Callable[[Path], EmbeddedFactory]] = {
        "embedded": EmbeddedFactory,
        "federation of one": FederatedFactory,
        "federation of two": _federation_of_two,
    }
    return kinds[request.param](tmp_path / "bus folder")


@dataclass(frozen=True)
class Child:
    """A process that uses a bus."""

    pid: int
    out: Path

    def lines(self) -> list[str]:
        """Return what the child has written, whole lines only."""
        return [line for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    async def written(self, count: int) -> list[str]:
        """Return the lines as soon as there are `count` of them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(lines := self.lines()) < count:
                await asyncio.sleep(0.001)
        return lines

    async def killed(self) -> list[str]:
        """Kill the child at once, as the kernel does, and return all that it has written."""
        os.kill(self.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT_SECONDS):
            while Path(f"/proc/{self.pid}").exists():
                await asyncio.sleep(0.001)
        return self.lines()


class Processes:
    """Starts processes of `bus_process.py`."""

    def __init__(self, folder: Path, parent: subprocess.Popen[str]) -> None:
        self._folder, self._parent = folder, parent
        self._started: list[Child] = []

    def start(self, do: str, url: str, name: str, count: int = 0) -> Child:
        """Start a process that does something `count` times, or until it is killed."""
        out = self._folder / f"{len(self._started)}.out"
        out.touch()
        order = {"do": do, "url": url, "name": name, "count": count, "out": str(out)}
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        child = Child(int(self._parent.stdout.readline()), out)
        self._started.append(child)
        return child

    def stop(self) -> None:
        """Kill what still runs."""
        for child in self._started:
            if b"bus_process" in _command_line(child.pid):
                os.kill(child.pid, signal.SIGKILL)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="session")
def process_parent() -> Iterator[subprocess.Popen[str]]:
    """Return the process from which the others are forked: what Python imports for a second is imported once."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bus_process.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        yield parent
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait(WAIT_SECONDS)


@pytest.fixture
def processes(tmp_path: Path, process_parent: subprocess.Popen[str]) -> Iterator[Processes]:
    """Return the starter of other processes; what still runs at the end is killed."""
    started = Processes(tmp_path, process_parent)
    yield started
    started.stop()


@pytest.fixture
def moments() -> random.Random:
    """Return the source of random moments; its seed is printed where a test fails."""
    seed = random.randrange(1 << 32)
    sys.stdout.write(f"moments: random.Random({seed})\n")
    return random.Random(seed)
