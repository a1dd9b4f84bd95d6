"""The peer of ``bench page``: Debian's Prometheus and Alertmanager, tuned to be as fast as they can be.

One second is the shortest interval that either is run with: a scrape a second, an evaluation a second, no ``for``, no
group wait. Alertmanager posts to a receiver in a process of its own, which stamps what arrives as the other one does.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.processes import ProcessFailed, Talking, talking

READY_SECONDS = 60.0
LATE_SECONDS = 20.0
STOP_SECONDS = 10.0
BINARIES = {"prometheus": ("prometheus",), "alertmanager": ("prometheus-alertmanager", "alertmanager")}

_RULES = """groups:
- name: bench
  interval: 1s
  rules:
  - alert: NonFinite
    expr: train_nonfinite_elements > 0
    labels: {severity: page}
"""


class PeerMissing(Exception):
    """Prometheus or Alertmanager is not on this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is not on this machine: make services gets it; on Debian apt-get install {BINARIES[name][0]}"
        )


@dataclass(frozen=True, slots=True)
class Peer:
    """The running peer; ``receiver`` prints a line for each notification."""

    receiver: Talking

    async def pages(self, stamps: Mapping[str, int]) -> list[tuple[str, int]]:
        """Job and moment of every firing alert that its receiver got, once all have come or are too late."""

        def complete(_: object) -> bool:
            return {job for job, _ in self._arrived()} >= stamps.keys()

        with contextlib.suppress(ProcessFailed):
            await self.receiver.line(complete, LATE_SECONDS)
        first: dict[str, int] = {}
        for job, moment in self._arrived():
            first.setdefault(job, moment)
        return list(first.items())

    def _arrived(self) -> list[tuple[str, int]]:
        """Alertmanager repeats what fires already: only first arrivals tell the latency."""
        return [
            (alert["labels"]["job"], line["monotonic_ns"])
            for line in self.receiver.lines
            if "alerts" in line
            for alert in line["alerts"]
            if alert["status"] == "firing"
        ]


@contextlib.asynccontextmanager
async def prometheus_peer(folder: Path, metrics_port: int) -> AsyncIterator[Peer]:
    """Prometheus scraping ``metrics_port`` of this machine, Alertmanager, and its receiver, on free ports."""
    prometheus, alertmanager = _binary("prometheus"), _binary("alertmanager")
    ports = [_free_port() for _ in range(2)]
    async with talking("the peer's receiver", ["app.bench.peer_receiver"]) as receiver:
        hook = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
        await asyncio.to_thread(_write, folder, metrics_port, ports, hook)
        manage = [alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager"]
        manage += [f"--web.listen-address=127.0.0.1:{ports[1]}", "--cluster.listen-address=", "--log.level=error"]
        scrape = [prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
        scrape += [f"--web.listen-address=127.0.0.1:{ports[0]}", "--log.level=error"]
        async with _running(manage, ports[1]), _running(scrape, ports[0]):
            yield Peer(receiver)


def _binary(name: str) -> str:
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "nantucket"
        / "services"
        / name
        / "usr"
        / "bin"
    )
    folder = os.environ.get("SERVICES_FOLDER")
    cache = Path(folder) / name / "usr" / "bin" if folder else cache
    for executable in BINARIES[name]:
        found = shutil.which(executable) or shutil.which(executable, path=str(cache))
        if found:
            return found
    raise PeerMissing(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _write(folder: Path, metrics_port: int, ports: list[int], hook: int) -> None:
    (folder / "rules.yml").write_text(_RULES)
    (folder / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(folder / "rules.yml")],
                "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
                "scrape_configs": [
                    {
                        "job_name": "jobs",
                        "honor_labels": True,
                        "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}],
                    }
                ],
            }
        )
    )
    (folder / "alertmanager.yml").write_text(
        json.dumps(
            {
                "route": {
                    "receiver": "hook",
                    "group_by": ["job"],
                    "group_wait": "0s",
                    "group_interval": "1s",
                    "repeat_interval": "1h",
                },
                "receivers": [
                    {"name": "hook", "webhook_configs": [{"url": f"http://127.0.0.1:{hook}/", "send_resolved": False}]}
                ],
            }
        )
    )


@contextlib.asynccontextmanager
async def _running(command: list[str], port: int) -> AsyncIterator[None]:
    """A program that answers on ``/-/ready`` once it is up; stopped by its process id."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        await _ready(process, command[0], port)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ready(process: asyncio.subprocess.Process, name: str, port: int) -> None:
    async with asyncio.timeout(READY_SECONDS), httpx.AsyncClient() as client:
        while True:
            if process.returncode is not None:
                _, said = await process.communicate()
                raise ProcessFailed(
                    name, f"ended with status {process.returncode}", said.decode("utf-8", "replace").splitlines()
                )
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{port}/-/ready")).is_success:
                    return
            await asyncio.sleep(0.1)
