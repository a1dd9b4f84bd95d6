"""A machine for tests: one state folder, a webhook's receiver, and the roles as processes of their own."""

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import nantucket
from app.processes import Talking, talking

COMPOSE = Path(__file__).resolve().parents[2] / "compose.yaml"
COMMANDS: dict[str, list[str]] = {
    name: service["command"]
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items()
    if "build" in service
}
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
TOKEN = "for-the-page-4711"
READY_SECONDS = 50.0
PAGE_SECONDS = 40.0
STOP_SECONDS = 9.0
"""Docker and podman kill ten seconds after SIGTERM."""


@dataclass
class Machine:
    """One state folder, its receiver, and the roles that run on it."""

    folder: Path
    receiver: Talking
    stack: contextlib.AsyncExitStack
    running: dict[str, Talking] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[Any] = field(default_factory=list)

    async def start(self, role: str, **settings: str) -> None:
        """Start `role` as compose.yaml does, in this folder, with `settings` in its environment, until it is ready."""
        state = "/var/lib/nantucket"
        command = [word.replace(state, str(self.folder)) for word in COMMANDS.get(role, [role, "--state", state])]
        elsewhere = {"8580": "0", "9464": "0", "0.0.0.0": "127.0.0.1"}
        command = [elsewhere.get(word, word) for word in command]
        if role == "up":
            command += ["--state", str(self.folder), "--simulate", "8", "--port", "0"]
        command += ["--config", str(self.folder / "nantucket.toml"), "--json"]
        environment = {"NANTUCKET_SERVE__TOKEN": TOKEN} if role in ("serve", "up") else {}
        words = ["app.cli", *command]
        process = await self.stack.enter_async_context(talking(role, words, env=environment | settings))
        self.ready[role] = await process.line(lambda line: line.get("ready"), READY_SECONDS)
        self.running[role] = process

    async def kill(self, role: str) -> None:
        """Kill `role` as the kernel does."""
        process = self.running.pop(role).process
        process.kill()
        await process.wait()

    async def ended(self, role: str, with_signal: signal.Signals) -> int:
        """The status with which `role` ends after the signal, within the time that a container has."""
        process = self.running.pop(role).process
        process.send_signal(with_signal)
        async with asyncio.timeout(STOP_SECONDS):
            return await process.wait()

    def go_bad(self, job: str) -> None:
        """A job of one rank reports two good steps and a NaN, through the SDK."""
        run = nantucket.init(job=job, rank=0, world_size=1, url=f"unix://{self.folder / 'collector.sock'}")
        for step in range(2):
            run.log(step=step, loss=1.0, grad_norm=1.0, nonfinite=0, scope="shard")
        run.log(step=2, loss=float("nan"), nonfinite=3, first_nonfinite="w", scope="shard")
        self.runs.append(run)

    async def paged(self, job: str) -> dict[str, Any]:
        """The incident of the page about `job`, as soon as the receiver has it."""

        def is_it(line: dict[str, Any]) -> bool:
            return bool(line.get("verified")) and line["body"]["incident"]["job"] == job

        incident: dict[str, Any] = (await self.receiver.line(is_it, PAGE_SECONDS))["body"]["incident"]
        return incident

    def client(self) -> httpx.AsyncClient:
        """A client of the serving role."""
        url = next(ready["url"] for ready in self.ready.values() if "url" in ready)
        return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {TOKEN}", "accept": "text/plain"})

    async def get(self, path: str) -> str:
        """What the serving role answers."""
        async with self.client() as client:
            return (await client.get(path)).raise_for_status().text

    @contextlib.asynccontextmanager
    async def reading_the_stream(self) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of the page's stream, whose connection stays open."""
        async with self.client() as client, client.stream("GET", "/api/v1/stream") as response:
            yield response.raise_for_status().aiter_lines()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Return a machine on which only the receiver runs; what still runs at the end is stopped."""
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(talking("receiver", ["app.demo.receiver"], stdin=SECRET + "\n"))
        port = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
        config = f'[receivers.r]\nurl = "http://127.0.0.1:{port}/"\nsecret = {json.dumps(SECRET)}\n'
        (tmp_path / "nantucket.toml").write_text(config)
        here = Machine(tmp_path, receiver, stack)
        yield here
        for run in here.runs:
            await asyncio.to_thread(run.finish)
