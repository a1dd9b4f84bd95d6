"""Killed at any instant and started again: nothing is lost, and nothing is told twice to who honours the id."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from alerting import StoreReader
from telemetry_bus import open_bus
from tests.alerting.scenes import CLOCK, Sender, finding, resolved, spike
from tests.fakes.webhook_server import WebhookServer

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class Role:
    """Starts the alert role of one folder again and again."""

    def __init__(self, folder: Path, hook_url: str) -> None:
        self.bus_url = (folder / "bus").as_uri()
        self.store = folder / "alerts.db"
        self._hook_url = hook_url

    @asynccontextmanager
    async def running(self, moment: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """The role as a process that dies at ``moment``; it is dead on leaving."""
        command = ["-m", "tests.alerting.alert_process", self.bus_url, str(self.store), self._hook_url, moment]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=REPOSITORY)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def dies(self, moment: str) -> None:
        """Run the role until it has killed itself."""
        async with self.running(moment) as process:
            assert await process.wait() == -signal.SIGKILL


@pytest.fixture
def role(tmp_path: Path, hook: WebhookServer) -> Role:
    """Return the role of this test's folder, whose pages reach ``hook``."""
    return Role(tmp_path, hook.url)


@pytest.mark.parametrize(("moment", "sent"), [("before-send", 0), ("after-send", 1)])
async def test_a_page_survives_a_kill_on_either_side_of_its_sending(
    role: Role, hook: WebhookServer, moment: str, sent: int
) -> None:
    """Between commit and send it is sent later; between send and mark it is sent again, under the same id."""
    async with open_bus(role.bus_url, CLOCK) as bus:
        await Sender(bus).send(finding())
        await role.dies(moment)
        await role.dies(moment)
        assert len(hook.arrivals) == 2 * sent
        async with role.running("never"):
            await hook.arrived(2 * sent + 1)
            await _until_delivered(role)
    assert len({arrival.id for arrival in hook.arrivals}) == 1
    assert len(hook.taken) == 1
    assert len(hook.arrivals) == 2 * sent + 1


async def test_an_incident_goes_on_where_it_was_when_the_process_was_killed(role: Role, hook: WebhookServer) -> None:
    """Findings that come while nobody runs are taken by the next one, into the same incident and in order."""
    async with open_bus(role.bus_url, CLOCK) as bus:
        sender = Sender(bus)
        await sender.send(spike())
        await role.dies("after-send")
        await sender.send(finding(), spike())
        await role.dies("after-send")
        await sender.send(resolved(), resolved("spike over", kind=spike().kind), finding())
        async with role.running("never"):
            bodies = await hook.took(3)
            await _until_delivered(role)
    assert [body["status"] for body in bodies] == ["firing", "updated", "resolved"]
    assert len({body["incident"]["id"] for body in bodies}) == 1


async def _until_delivered(role: Role) -> None:
    """Wait until the store knows that everything was taken."""
    async with StoreReader(role.store) as reader:
        while True:
            _, changed = await reader.changed_since(0, 10)
            states = [delivery["state"] for item in changed for delivery in item.deliveries]
            if states and set(states) == {"delivered"}:
                return
            await asyncio.sleep(0.02)
