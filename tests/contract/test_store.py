"""What every alert store does: one transaction for all that follows from a finding, each finding once for ever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from alerting import Presentation, Routing, Store, StoreInUse, StoreMismatch, StoreReader, StoreUnavailable, Tier
from alerting.delivery import Delivery, DeliveryState, Mark
from alerting.group import Scene
from alerting.incident import Scope, Status, incident_id, opened
from alerting.plan import Planned, Planner
from alerting.store import Bounds, Position
from telemetry_bus import Finding
from telemetry_bus.json_text import dumps
from tests.alerting.scenes import T0, finding, resolved, spike

PLANNER = Planner(Routing(), {"pager": frozenset({Tier.PAGE}), "desk": frozenset({Tier.PAGE})}, Presentation())
LONGEST_WAIT = 3600.0


def plan(scene: Scene, item: Finding) -> Planned:
    """Plan as the service does, at T0."""
    return PLANNER.plan(scene, item, T0, ())


@pytest.fixture(params=["sqlite"])
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return an open, empty store of each kind."""
    async with Store(tmp_path / "alerts.db") as opened:
        yield opened


def at(offset: int, log: str = "log") -> Position:
    """The position behind all records before ``offset``."""
    return Position(log, {0: offset})


async def take(store: Store, *findings: Finding, following: int = 1) -> tuple[Delivery, ...]:
    """Record ``findings`` and return the deliveries that follow."""
    return (await store.record(findings, at(following), "findings", plan)).deliveries


async def due(store: Store, receiver: str = "pager", now: float = T0) -> list[str]:
    """The transitions that are due."""
    return [delivery.transition for delivery in await store.due(receiver, now, 10, LONGEST_WAIT)]


def taken(delivery: Delivery) -> Mark:
    """The mark of a delivery that was taken at the first try."""
    return Mark(delivery.id, DeliveryState.DELIVERED, 1, 0.0, T0, None)


async def test_what_is_recorded_is_there_after_it_is_opened_again(tmp_path: Path) -> None:
    """Incident, outbox and position are durable together."""
    async with Store(tmp_path / "alerts.db") as first:
        deliveries = await take(first, spike(), finding(), following=42)
    async with Store(tmp_path / "alerts.db") as again:
        assert await again.position("findings") == at(42)
        assert await again.due("pager", T0, 10, LONGEST_WAIT) == [deliveries[0]]
        (stored,) = await again.newest(10, open_only=True)
        assert (stored.findings, stored.incident.updates) == (2, 1)


async def test_a_finding_is_taken_once_for_ever(store: Store) -> None:
    """A finding that comes again, in the same batch or any later one, changes nothing and tells nobody."""
    recorded = await store.record([finding(), finding()], at(1), "findings", plan)
    again = await store.record([finding()], at(2), "findings", plan)
    assert (recorded.duplicates, len(recorded.deliveries)) == (1, 2)
    assert (again.duplicates, again.deliveries, again.revision) == (1, (), recorded.revision)
    assert await store.position("findings") == at(2)


async def test_a_position_belongs_to_one_log(store: Store) -> None:
    """Offsets of a log that was made anew replace those of the one before, larger or not, in every partition."""
    await store.record([], Position("old", {0: 100, 1: 200}), "findings", plan)
    await store.record([], at(3, "new"), "findings", plan)
    assert await store.position("findings") == at(3, "new")


async def test_a_plan_that_fails_leaves_nothing_behind(store: Store) -> None:
    """Everything that follows from a batch is one transaction."""

    def fails_at_the_second(scene: Scene, item: Finding) -> Planned:
        if item.id == "two":
            raise ZeroDivisionError
        return plan(scene, item)

    with pytest.raises(ZeroDivisionError):
        await store.record([finding("one"), finding("two", job="b")], at(9), "findings", fails_at_the_second)
    assert await store.newest(10, open_only=False) == []
    assert await store.position("findings") == Position(None, {})
    assert await due(store) == []


async def test_a_rehearsal_leaves_nothing_behind(store: Store) -> None:
    """What is done to be fast the first time is undone: no incident, no delivery, no id, no revision."""
    await store.rehearse([finding()], plan)
    assert (await store.newest(10, open_only=False), await due(store)) == ([], [])
    assert await store.changed_since(0, 10) == (0, [])
    assert len(await take(store, finding())) == 2


async def test_a_lane_gives_its_deliveries_one_after_the_other(store: Store) -> None:
    """What is told to one receiver of one incident stays in order; another receiver does not wait for it."""
    first = await take(store, spike(), finding(), resolved(), resolved("end", kind=spike().kind))
    assert await due(store, "pager") == ["firing"]
    for delivery in [item for item in first if item.receiver == "pager"]:
        assert await due(store, "pager") == [delivery.transition]
        await store.mark([taken(delivery)])
    assert await due(store, "pager") == []
    assert await due(store, "desk") == ["firing"]


async def test_a_delivery_waits_for_its_next_try(store: Store) -> None:
    """The state of a retry is durable: when, how often, and why."""
    delivery, _ = await take(store, finding())
    await store.mark([Mark(delivery.id, DeliveryState.PENDING, 3, 7.5, T0 + 30, "server_error: 503")])
    assert await due(store, now=T0 + 29) == []
    (again,) = await store.due("pager", T0 + 30, 10, LONGEST_WAIT)
    assert (again.attempts, again.waited_seconds) == (3, 7.5)
    (stored,) = await store.newest(1, open_only=False)
    assert stored.deliveries[0]["last_error"] == "server_error: 503"


async def test_a_clock_that_was_set_back_does_not_hold_a_delivery(store: Store) -> None:
    """A try that lies further ahead than the longest wait is due now."""
    await take(store, finding())
    assert await due(store, now=T0 - LONGEST_WAIT + 1) == []
    assert await due(store, now=T0 - LONGEST_WAIT - 1) == ["firing"]


async def test_what_is_dead_is_shown_and_not_tried_again(store: Store) -> None:
    """A dead delivery keeps its reason; what comes after it in its lane is told."""
    delivery, *_ = await take(store, spike(), finding())
    await store.mark([Mark(delivery.id, DeliveryState.DEAD, 1, 0.0, T0, "refused: 410")])
    assert await due(store) == ["updated:1"]
    assert (await store.standing()).deliveries[DeliveryState.DEAD] == 1


async def test_a_receiver_that_is_gone_holds_nothing(store: Store) -> None:
    """What waits for a receiver that is no longer configured is dead, and says why."""
    await take(store, finding())
    assert await store.retire(["desk"]) == 1
    assert (await due(store, "pager"), await due(store, "desk")) == ([], ["firing"])


async def test_a_mark_of_what_is_not_recorded_yet_is_given_back(store: Store) -> None:
    """What was sent while the store was away is marked once it is recorded, and not before."""
    (delivery, _) = plan(Scene(), finding()).deliveries
    assert await store.mark([taken(delivery)]) == [delivery.id]
    await take(store, finding())
    assert await store.mark([taken(delivery)]) == []
    assert await due(store) == []


async def test_every_change_has_a_revision_and_readers_get_what_changed(store: Store) -> None:
    """Revisions only grow; a reader that asks from where it was misses no change of an incident or its deliveries."""
    first = await take(store, finding())
    revision, changed = await store.changed_since(0, 10)
    assert len(changed) == 1
    await take(store, finding("b", job="b"), following=2)
    second, changed = await store.changed_since(revision, 10)
    assert [item.incident.job for item in changed] == ["b"]
    await store.mark([taken(first[0])])
    third, changed = await store.changed_since(second, 10)
    assert [item.incident.job for item in changed] == ["leviathan-7b"]
    assert revision < second < third
    assert await store.changed_since(third, 10) == (third, [])


async def test_a_reader_of_another_process_reads_and_cannot_write(store: Store) -> None:
    """Readers neither wait for the writer nor disturb it."""
    await take(store, finding())
    async with StoreReader(store.path) as reader:
        stored = await reader.one(plan(Scene(), finding()).deliveries[0].incident_id)
        assert stored is not None
        assert [item["id"] for item in stored[1]] == ["one"]
        assert await reader.one("no such incident") is None
        await take(store, finding("b", job="b"))
        assert len(await reader.newest(10, open_only=True)) == 2


async def test_the_store_keeps_within_its_bounds(store: Store) -> None:
    """The oldest findings and finished deliveries go; what is pending and what is an incident stays."""
    for number in range(5):
        deliveries = await take(store, finding(str(number), job=str(number)))
        await store.mark([taken(deliveries[0])])
    assert await store.prune(Bounds(findings=2, deliveries=2)) == 3 + 4
    assert len(await store.newest(10, open_only=True)) == 5
    assert (await store.standing()).deliveries == {"pending": 5, "delivered": 1, "dead": 0}


def fill(store: Store, count: int, status: Status) -> None:
    """Put ``count`` incidents of ``status`` into the store's tables, as it writes them itself, only faster."""
    item = finding(job="JOB")
    text = dumps(replace(opened(item, Scope.of(item), 1, Tier.PAGE), status=status).document())
    tiers = [Tier.PAGE, Tier.PAGE, Tier.TICKET]
    with sqlite3.connect(store.path) as connection:
        (revision,) = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()
        connection.executemany(
            "INSERT INTO incidents VALUES (?, ?, 'nonfinite', 1, ?, ?, ?, ?, 1, ?)",
            (
                (
                    incident_id(f"job/{status}-{n}/attempt/2/nonfinite/1"),
                    f"job/{status}-{n}/attempt/2",
                    status.value,
                    tiers[n % 3].value,
                    revision + n + 1,
                    T0 + n,
                    text.replace("JOB", f"{status}-{n}"),
                )
                for n in range(count)
            ),
        )
        connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision + count,))
    connection.close()


async def test_of_twenty_thousand_incidents_the_open_ones_are_told_first_and_all_are_counted(store: Store) -> None:
    """An answer has as many as were asked for, whatever there is; counts do not depend on it."""
    await asyncio.to_thread(fill, store, 300, Status.FIRING)
    await asyncio.to_thread(fill, store, 20_000, Status.RESOLVED)
    revision, told = await store.changed_since(0, 200)
    assert revision == 20_300
    assert [item.incident.job for item in told] == [f"firing-{n}" for n in range(100, 300)]
    _, told = await store.changed_since(0, 310)
    assert [item.incident.job for item in told[-10:]] == [f"resolved-{n}" for n in range(19_990, 20_000)]
    assert [item.incident.status for item in told].count(Status.FIRING) == 300
    assert await store.open_by_tier() == {Tier.PAGE: 200, Tier.TICKET: 100, Tier.LOG: 0}


async def test_the_oldest_resolved_incidents_go_and_none_of_their_ids_is_used_again(store: Store) -> None:
    """What is open or still to be sent stays; the next trouble of a forgotten job is its next episode."""
    await asyncio.to_thread(fill, store, 20_000, Status.RESOLVED)
    await asyncio.to_thread(fill, store, 3, Status.FIRING)
    await take(store, finding("waits", job="waits"), resolved("over", job="waits"))
    while await store.prune(Bounds(resolved=10)):
        pass
    left = [item.incident for item in await store.newest(100, open_only=False)]
    assert len(left) == 13
    assert sum(item.status is Status.FIRING for item in left) == 3
    assert "waits" in {item.job for item in left}
    again = finding("again", job="resolved-0", time=T0 + 1e6, onset_time=T0 + 1e6)
    await take(store, again, following=2)
    assert (await store.newest(1, open_only=True))[0].incident.paging_key == "job/resolved-0/attempt/2/nonfinite/2"


async def test_endings_keep_within_their_bound(store: Store) -> None:
    """The oldest ends go; then what is older than such an end is no late evidence any more, but new trouble."""
    for n in range(6):
        await take(store, resolved(f"over {n}", job=f"job-{n}", time=T0 + n), following=n + 1)
    while await store.prune(Bounds(endings=2)):
        pass
    first = await take(store, finding("old", job="job-0", time=T0 - 1), following=7)
    last = await take(store, finding("late", job="job-5", time=T0 - 1), following=8)
    assert (len(first), len(last)) == (2, 0)


async def test_a_store_has_one_writer(store: Store) -> None:
    """A second writer is refused with the reason, and the first goes on."""
    with pytest.raises(StoreInUse, match="written by another process"):
        async with Store(store.path):
            pass
    await take(store, finding())


async def test_a_store_of_another_version_is_not_touched(tmp_path: Path) -> None:
    """What another version wrote is refused by name, not changed."""
    async with Store(tmp_path / "alerts.db"):
        pass
    with sqlite3.connect(tmp_path / "alerts.db") as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema_version'")
    connection.close()
    with pytest.raises(StoreMismatch, match="version 99, expected 1"):
        async with Store(tmp_path / "alerts.db"):
            pass


async def test_a_store_that_is_away_says_so_and_works_when_it_is_back(tmp_path: Path) -> None:
    """Every fault of the disk is StoreUnavailable; the same call succeeds later."""
    path = tmp_path / "disk" / "alerts.db"
    (tmp_path / "disk").write_text("not mounted")
    async with Store(path) as store:
        with pytest.raises(StoreUnavailable, match="could not record"):
            await take(store, finding())
        with pytest.raises(StoreUnavailable):
            await store.ready()
        (tmp_path / "disk").unlink()
        assert len(await take(store, finding())) == 2
        await store.ready()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Garbage in the store's place is named, and left as it is."""
    (tmp_path / "alerts.db").write_bytes(b"garbage" * 1000)
    async with Store(tmp_path / "alerts.db") as store:
        with pytest.raises(StoreUnavailable, match="not a database"):
            await take(store, finding())
    assert (tmp_path / "alerts.db").read_bytes() == b"garbage" * 1000
