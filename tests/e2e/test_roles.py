"""The roles as processes of their own, with the commands of compose.yaml: they meet only in one state folder."""

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
from prometheus_client.parser import text_string_to_metric_families

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

    async def start(self, role: str) -> None:
        """Start `role` as compose.yaml does, in this folder, and wait until it is ready."""
        state = "/var/lib/nantucket"
        command = [word.replace(state, str(self.folder)) for word in COMMANDS.get(role, [role, "--state", state])]
        elsewhere = {"8580": "0", "9464": "0", "0.0.0.0": "127.0.0.1"}
        command = [elsewhere.get(word, word) for word in command]
        if role == "up":
            command += ["--state", str(self.folder), "--simulate", "8", "--port", "0"]
        command += ["--config", str(self.folder / "nantucket.toml"), "--json"]
        environment = {"NANTUCKET_SERVE__TOKEN": TOKEN} if role in ("serve", "up") else {}
        process = await self.stack.enter_async_context(talking(role, ["app.cli", *command], env=environment))
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


@pytest.mark.timeout(150)  # four processes, two of them started twice, on a machine that may have two cores
async def test_four_processes_page_a_nan_and_lose_nothing_when_one_is_killed(machine: Machine) -> None:
    """A NaN is paged through four processes; one that is reported while the detectors or alerting are dead is paged
    once when they are back; SIGTERM ends each in order."""
    for role in COMMANDS:
        await machine.start(role)
    machine.go_bad("first")
    incident = await machine.paged("first")
    assert (incident["detected_step"], incident["where"]["parameter"]) == (2, "w")
    for role in ("detect", "alert"):
        await machine.kill(role)
        machine.go_bad(f"while-{role}-was-dead")
        await machine.start(role)
        assert (await machine.paged(f"while-{role}-was-dead"))["detected_step"] == 2
    shown = json.loads(await machine.get("/api/v1/incidents"))
    jobs = {item["job"] for item in (shown["incidents"] if isinstance(shown, dict) else shown)}
    assert jobs >= {"first", "while-detect-was-dead", "while-alert-was-dead"}
    assert {role: await machine.ended(role, signal.SIGTERM) for role in reversed(COMMANDS)} == dict.fromkeys(
        COMMANDS, 0
    )
    firing = [line for line in machine.receiver.lines if line.get("verified") and line["body"]["status"] == "firing"]
    pages = [(line["body"]["incident"]["job"], line["id"]) for line in firing if line["body"]["incident"]["job"]]
    assert len(set(pages)) == 3
    assert all(line["verified"] for line in machine.receiver.lines if "verified" in line)


@pytest.mark.timeout(120)
async def test_an_interrupt_ends_each_role_with_130(machine: Machine) -> None:
    """Ctrl-C is told from an ordered stop by the exit status, whatever role it is."""
    for role in COMMANDS:
        await machine.start(role)
    assert {role: await machine.ended(role, signal.SIGINT) for role in reversed(COMMANDS)} == dict.fromkeys(
        COMMANDS, 130
    )


@pytest.mark.timeout(120)
async def test_every_role_of_its_own_tells_its_figures(machine: Machine) -> None:
    """`collect`, `detect` and `alert` answer /metrics and /healthz themselves, and their figures move with a NaN."""
    wanted = {
        "collect": ("nantucket_sdk_rows_total", "nantucket_collector_rows_total"),
        "detect": ("nantucket_findings_total",),
        "alert": ("nantucket_delivery_tries_total", "nantucket_alert_findings_total"),
    }
    for role in wanted:
        await machine.start(role)
    machine.go_bad("j")
    await machine.paged("j")
    async with httpx.AsyncClient() as client:
        for role, names in wanted.items():
            url = machine.ready[role]["metrics"]
            async with asyncio.timeout(PAGE_SECONDS):
                text = ""
                while not all(total(text, name) > 0 for name in names):
                    text = (await client.get(url)).raise_for_status().text
            assert (await client.get(url.replace("/metrics", "/healthz"))).text == "ok\n"
            assert (await client.get(url.replace("/metrics", "/elsewhere"))).status_code == 404


def total(metrics: str, name: str) -> float:
    """The sum of a figure over all its labels; 0 where it has no sample."""
    families = text_string_to_metric_families(metrics)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


FIGURES = {
    "nantucket_findings_total": {"detector": "nonfinite"},
    "nantucket_delivery_tries_total": {"outcome": "taken"},
    "nantucket_sdk_rows_total": {},
    "nantucket_frames_total": {},
    "nantucket_alert_findings_total": {},
}
"""One figure of each role that a NaN moves, and a label of it."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("with_signal", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "int"])
async def test_one_process_with_all_roles_pages_counts_and_ends(
    machine: Machine, with_signal: signal.Signals, status: int
) -> None:
    """`nantucket up` pages the NaN, its /metrics carry what every role counted, and signals end it as they end one,
    even while somebody looks at the page."""
    await machine.start("up")
    assert machine.ready["up"]["roles"] == sorted(COMMANDS)
    machine.go_bad("j")
    await machine.paged("j")
    values: dict[str, float] = {}
    async with asyncio.timeout(PAGE_SECONDS):
        while set(values) < set(FIGURES):
            values = {name: value for name, value in moved(await machine.get("/metrics")).items() if value > 0}
            await asyncio.sleep(0.05)
    async with machine.reading_the_stream() as lines:
        await anext(lines)
        assert await machine.ended("up", with_signal) == status


def moved(metrics: str) -> dict[str, float]:
    """The figures of the table, summed over the labels that it does not name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = FIGURES.get(sample.name)
            if labels is not None and labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
