"""A bus whose log was made anew, or put back from a copy, silences nobody: old positions mean nothing in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alerting import Store
from telemetry_bus import open_bus
from tests.alerting.scenes import CLOCK, Sender, finding
from tests.alerting.test_service import alerting
from tests.fakes.webhook_server import WebhookServer


async def page(folder: Path, hook: WebhookServer, *jobs: str) -> set[str]:
    """Run the bus and the alert role while trouble of ``jobs`` is found; return the jobs paged so far."""
    async with open_bus((folder / "bus").as_uri(), CLOCK) as bus, Store(folder / "alerts.db") as store:
        sender = Sender(bus)
        for job in jobs:
            await sender.send(finding(job, job=job))
        paged = len(hook.taken)
        async with alerting(bus, store, hook) as service:
            bodies = await hook.took(paged + len(jobs))
            assert service.stats.findings_total == len(jobs)
    return {body["incident"]["job"] for body in bodies}


async def test_a_log_that_was_made_anew_is_read_from_its_beginning(
    tmp_path: Path, hook: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The new log's offsets lie before the old position; its findings page all the same, and the log says why."""
    await page(tmp_path, hook, "a", "b", "c")
    for file in (tmp_path / "bus").glob("log.sqlite*"):
        file.unlink()
    assert await page(tmp_path, hook, "new") == {"a", "b", "c", "new"}
    assert "another log" in caplog.text
    caplog.clear()
    assert await page(tmp_path, hook, "newer") == {"a", "b", "c", "new", "newer"}
    assert "another log" not in caplog.text


async def test_a_log_that_was_put_back_from_a_copy_is_read_from_its_beginning(
    tmp_path: Path, hook: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It has lost what was taken of it: its position lies beyond its end. What is read again is paged once."""
    await page(tmp_path, hook, "a")
    shutil.copytree(tmp_path / "bus", tmp_path / "copy")
    await page(tmp_path, hook, "b", "c", "d")
    shutil.rmtree(tmp_path / "bus")
    (tmp_path / "copy").rename(tmp_path / "bus")
    assert await page(tmp_path, hook, "new") == {"a", "b", "c", "d", "new"}
    assert "another log" in caplog.text
