"""A real Apache Kafka on this machine, one broker in KRaft mode: for benchmarks, the demo and the tests.

Its log lies in a folder that the caller gives, so that a broker that was stopped or killed goes on with what it had, on
the same ports. It creates no topic by itself: that is what `nantucket bus init` is for.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from app.processes import ProcessFailed

READY_SECONDS = 60.0
"""A broker answers after 2 s on an idle machine of two cores."""
STOP_SECONDS = 20.0
LOOK_SECONDS = 0.05
JAVA_OPTS = "-Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"
"""A small heap, and a compiler that is quick to start rather than thorough: brokers here live for minutes."""
MESSAGE_BYTES_MAX = 17 * 1024 * 1024
"""The largest frame (16 MiB) and the record batch around it."""


class KafkaMissing(Exception):
    """Kafka is not on this machine."""

    def __init__(self) -> None:
        super().__init__("Kafka is not on this machine: make services gets it; it needs Java 17 and Maven.")


@dataclass(frozen=True, slots=True)
class Listener:
    """One more way into the broker: ``properties`` are its own, by their names after ``listener.name.NAME.``."""

    protocol: str
    port: int
    properties: Mapping[str, str] = field(default_factory=dict)
    advertised_port: int | None = None
    """The port that clients are told; where something stands between them and the broker, another one."""


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """How a broker is set up. ``properties`` go into its configuration as they are."""

    listeners: Mapping[str, Listener] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    java_opts: str = JAVA_OPTS


class KafkaBroker:
    """One broker: ``async with`` formats its folder, starts it, and stops it at the end."""

    def __init__(self, folder: Path, options: BrokerOptions | None = None) -> None:
        self._folder = folder
        self._options = BrokerOptions() if options is None else options
        self._launcher = ""
        self._port, self._controller_port = free_port(), free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.bootstrap = f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        """Format and start. Raises KafkaMissing, or ProcessFailed with what the broker said."""
        self._launcher = await asyncio.to_thread(launcher)
        await asyncio.to_thread(self._write_configuration)
        await self._format()
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start with the log that the folder holds, on the same ports, and wait until it answers."""
        self._process = await self._run("kafka.Kafka", str(self._properties), opts=self._options.java_opts)
        try:
            await self._answering(self._process)
        except BaseException:
            await self.kill()
            raise

    async def stop(self) -> None:
        """Stop it as an operator does; what it holds stays in the folder."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Kill it at once, as the kernel does."""
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    @property
    def _said(self) -> Path:
        return self._folder / "broker.out"

    def _write_configuration(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}" for key, value in self._configuration().items()]
        self._properties.write_text("\n".join(lines) + "\n")
        self._properties.chmod(0o600)  # it may hold a listener's passwords

    def _configuration(self) -> dict[str, str]:
        ways = {"PLAINTEXT": Listener("PLAINTEXT", self._port), **self._options.listeners}
        told = {name: way.advertised_port or way.port for name, way in ways.items()}
        protocols = {name: way.protocol for name, way in ways.items()} | {"CONTROLLER": "PLAINTEXT"}
        ports = {name: way.port for name, way in ways.items()} | {"CONTROLLER": self._controller_port}
        configuration = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(f"{name}:{value}" for name, value in protocols.items()),
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items()),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in told.items()),
            "log.dirs": str(self._folder / "log"),
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(MESSAGE_BYTES_MAX),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "broker.session.timeout.ms": "2000",  # a broker that was killed may register again after this long
            "broker.heartbeat.interval.ms": "500",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        }
        for name, way in self._options.listeners.items():
            configuration |= {f"listener.name.{name.lower()}.{key}": value for key, value in way.properties.items()}
        return configuration | dict(self._options.properties)

    async def _format(self) -> None:
        if await asyncio.to_thread((self._folder / "log" / "meta.properties").exists):
            return
        tool = "kafka.tools.StorageTool"
        cluster = "bmFudHVja2V0LWNsdXN0ZQ"  # 16 bytes in URL-safe base64, as Kafka wants it
        command = (tool, "format", "--cluster-id", cluster, "--config", str(self._properties))
        process = await self._run(*command, opts="-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        try:
            async with asyncio.timeout(READY_SECONDS):
                status = await process.wait()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if status != 0:
            raise ProcessFailed("kafka", f"could not format its folder: status {status}", await self._last_words())

    async def _run(self, *command: str, opts: str) -> asyncio.subprocess.Process:
        out = await asyncio.to_thread(self._said.open, "ab")
        try:
            return await asyncio.create_subprocess_exec(
                self._launcher,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "JAVA_OPTS": opts},
            )
        finally:
            out.close()

    async def _answering(self, process: asyncio.subprocess.Process) -> None:
        """Wait until the broker takes connections: it opens its port once it is no longer fenced."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await _takes_connections(self._port):
                    if process.returncode is not None:
                        what = f"ended with status {process.returncode}"
                        raise ProcessFailed("kafka", what, await self._last_words())
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise ProcessFailed(
                "kafka", f"did not answer within {READY_SECONDS:.0f} s", await self._last_words()
            ) from error

    async def _last_words(self) -> list[str]:
        text = await asyncio.to_thread(self._said.read_text, "utf-8", "replace")
        return text.splitlines()


def launcher() -> str:
    """The program that runs Kafka, where `make services` has put it. Raises :class:`KafkaMissing`."""
    folder = os.environ.get("SERVICES_FOLDER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nantucket" / "services"
    programs = (Path(folder) if folder else cache) / "kafka" / "usr" / "bin"
    found = sorted(programs.glob("nantucket-kafka-*"))
    if not found:
        raise KafkaMissing
    return str(found[-1])


def free_port() -> int:
    """A port of this machine that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def _takes_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
