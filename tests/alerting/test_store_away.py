"""Paging does not depend on the store: while it is away critical findings are sent at once, and recorded afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from alerting import IncidentReader, Store, StoreUnavailable
from telemetry_bus import Bus, Severity
from tests.alerting.scenes import CLOCK, Sender, finding, resolved, spike
from tests.alerting.test_service import alerting
from tests.fakes.webhook_server import Answer, WebhookServer


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Another program holds the database, as a backup or a hanging disk does: no transaction can be written."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_critical_finding_is_paged_while_the_store_is_away_and_recorded_when_it_is_back(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """Sent at once, recorded afterwards with the same id, and not sent again."""
    async with alerting(bus, store, hook) as service:
        with held(store):
            await Sender(bus).send(finding(), finding("warning", job="b", severity=Severity.WARNING))
            (body,) = await hook.took(1)
            assert (await service.blindness()) == "2 findings wait for the store"
        reader = IncidentReader(store, CLOCK)
        while not (recorded := [item for item in await reader.incidents() if item["job"] == "leviathan-7b"]):
            await asyncio.sleep(0.02)
        while recorded[0]["deliveries"][0]["state"] != "delivered":
            await asyncio.sleep(0.02)
            recorded = [item for item in await reader.incidents() if item["job"] == "leviathan-7b"]
        assert recorded[0]["id"] == body["incident"]["id"]
        assert service.stats.direct_total == 1
        assert service.stats.held_findings == 0
    assert len(hook.arrivals) == 1


async def test_order_and_retries_hold_while_the_store_is_away(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Without the outbox too, an update waits for its first word, and a failure is tried again."""
    hook.answers.extend([Answer(503), Answer(503)])
    async with alerting(bus, store, hook):
        with held(store):
            await Sender(bus).send(spike(), finding())
            bodies = await hook.took(2)
        assert [body["status"] for body in bodies] == ["firing", "updated"]
        assert [arrival.answered for arrival in hook.arrivals] == [503, 503, 204, 204]
        await Sender(bus, "later").send(resolved(), resolved("spike over", kind=spike().kind))
        bodies = await hook.took(3)
    assert bodies[-1]["status"] == "resolved"
    assert len({body["incident"]["id"] for body in bodies}) == 1


async def test_a_store_away_when_the_incident_is_known_goes_on_with_it(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """What this process has seen it remembers: the NaN after the spike is an update, with or without the store."""
    async with alerting(bus, store, hook):
        sender = Sender(bus)
        await sender.send(spike())
        await hook.took(1)
        with held(store):
            await sender.send(finding())
            bodies = await hook.took(2)
    assert [body["status"] for body in bodies] == ["firing", "updated"]
    assert len({body["incident"]["id"] for body in bodies}) == 1


@contextmanager
def unmounted(disk: Path) -> Iterator[None]:
    """Where the folder ``disk`` was there is none: everything in it is out of reach."""
    elsewhere = disk.with_suffix(".unmounted")
    disk.rename(elsewhere)
    disk.write_text("not mounted")
    try:
        yield
    finally:
        disk.unlink()
        elsewhere.rename(disk)


async def test_a_process_that_starts_without_its_store_pages_and_records_it_all_later(
    bus: Bus, hook: WebhookServer, tmp_path: Path
) -> None:
    """Where it was is not known: it pages what is critical at once, and goes on where it was when the store is back."""
    path, sender = tmp_path / "disk" / "alerts.db", Sender(bus)
    async with Store(path) as store, alerting(bus, store, hook):
        await sender.send(spike())
        await hook.took(1)
    await sender.send(finding("quiet", job="quiet", severity=Severity.WARNING))
    with unmounted(tmp_path / "disk"):
        store = Store(path)
        await store.__aenter__()
        service = alerting(bus, store, hook)
        running = await service.__aenter__()
        await sender.send(finding("loud", job="loud"))
        bodies = await hook.took(2)
        assert bodies[-1]["incident"]["job"] == "loud"
        assert "critical findings are paged, nothing is recorded" in str(await running.blindness())
    await recorded(store, "leviathan-7b", "quiet", "loud")
    await sender.send(finding("after", job="after"))
    await hook.took(3)
    while (why := await running.blindness()) is not None:
        assert "nothing is recorded" not in why
        await asyncio.sleep(0.02)
    await service.__aexit__(None, None, None)
    await store.__aexit__()
    identities = [arrival.id for arrival in hook.arrivals if arrival.body["incident"]["job"] == "loud"]
    assert len(identities) == 1


async def recorded(store: Store, *jobs: str | None) -> None:
    """Wait until the store has the incidents of ``jobs`` and knows that all was delivered."""
    reader = IncidentReader(store, CLOCK)
    shown: list[dict[str, Any]] = []
    while {item["job"] for item in shown} != set(jobs) or any(
        sent["state"] != "delivered" for item in shown for sent in item["deliveries"]
    ):
        await asyncio.sleep(0.02)
        with suppress(StoreUnavailable):
            shown = await reader.incidents()


async def test_a_process_whose_store_is_garbage_pages_and_says_what_to_do(
    bus: Bus, hook: WebhookServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged store does not silence paging, and is left as it is; the log says that nothing is recorded."""
    path = tmp_path / "alerts.db"
    path.write_bytes(b"garbage" * 1000)
    async with Store(path) as store, alerting(bus, store, hook) as service:
        await Sender(bus).send(finding())
        (body,) = await hook.took(1)
        assert await service.blindness() is not None
        assert body["incident"]["title"] == finding().title
        assert "nothing is recorded" in caplog.text
        assert "move it away" in caplog.text
        assert path.read_bytes() == b"garbage" * 1000
        path.rename(tmp_path / "garbage")
        await recorded(store, "leviathan-7b")
    assert len(hook.arrivals) == 1
