"""The transactions that change the store. Each function is one transaction's inside and is given its connection."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from alerting.delivery import Delivery, DeliveryState, Mark
from alerting.errors import Outcome
from alerting.group import Change, Ending, Scene, Turn
from alerting.incident import Incident, Scope, Status
from alerting.plan import Planned
from alerting.receipts import ReceiptOutcome
from alerting.store.reads import VARIABLES_MAX, Position
from alerting.store.tables import deliveries, endings, episodes, findings, incidents, logs, meta, positions
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.json_text import dumps

Plan = Callable[[Scene, Finding], Planned]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What :func:`record` has done. ``changes`` are of findings that were new; ``deliveries`` are to be sent;
    ``receipts`` counts the receipts of the findings by what they were good for; ``revision`` is the store's now."""

    changes: tuple[Change, ...]
    deliveries: tuple[Delivery, ...]
    duplicates: int
    revision: int
    receipts: Mapping[ReceiptOutcome, int]


@dataclass(slots=True)
class _Batch:
    """What one transaction is about to write."""

    scenes: dict[Scope, Scene] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    incidents: dict[str, Incident] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    endings: dict[tuple[str, str], Ending] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    receipts: Counter[ReceiptOutcome] = field(default_factory=Counter)


def record(connection: sa.Connection, found: Sequence[Finding], position: Position, topic: str, plan: Plan) -> Recorded:
    """Take ``found`` once each, with the incidents and deliveries that follow, and the position behind them."""
    seen = _seen(connection, [finding.id for finding in found])
    batch, duplicates = _Batch(), 0
    for finding in found:
        if finding.id in seen:
            duplicates += 1
            continue
        seen.add(finding.id)
        _add(connection, batch, finding, plan)
    revision = _write(connection, batch) if batch.changes else current_revision(connection)
    _advance(connection, topic, position)
    unsent = tuple(delivery for delivery in batch.deliveries if delivery.id not in batch.taken)
    return Recorded(tuple(batch.changes), unsent, duplicates, revision, batch.receipts)


def _seen(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    for start in range(0, len(ids), VARIABLES_MAX):
        some = ids[start : start + VARIABLES_MAX]
        seen.update(connection.scalars(sa.select(findings.c.id).where(findings.c.id.in_(some))))
    return seen


def _add(connection: sa.Connection, batch: _Batch, finding: Finding, plan: Plan) -> None:
    scope = Scope.of(finding)
    scene = batch.scenes.get(scope)
    if scene is None:
        scene = _scene(connection, scope)
    planned = plan(scene, finding)
    change = planned.change
    batch.scenes[scope] = scene.after(change)
    batch.changes.append(change)
    batch.deliveries.extend(planned.deliveries)
    batch.taken |= planned.taken
    batch.receipts[ReceiptOutcome.UNUSED] += len(planned.told.receipts)
    batch.receipts[ReceiptOutcome.INVALID] += planned.told.invalid
    if change.incident is not None:
        batch.incidents[change.incident.id] = change.incident
        if change.turn is Turn.FIRING:
            batch.opened.add(change.incident.id)
    if change.incident_id is not None:
        batch.counts[change.incident_id] = batch.counts.get(change.incident_id, 0) + 1
    if change.ending is not None:
        batch.endings[(scope.text(), finding.kind.value)] = change.ending


def _scene(connection: sa.Connection, scope: Scope) -> Scene:
    text = scope.text()
    is_here = incidents.c.scope == text
    open_rows = connection.scalars(
        sa.select(incidents.c.document).where(is_here, incidents.c.status == Status.FIRING.value)
    )
    resolved = sa.select(incidents.c.paging_kind, sa.func.max(incidents.c.episode)).where(
        is_here, incidents.c.status == Status.RESOLVED.value
    )
    known = {
        FindingKind(kind): int(count) for kind, count in connection.execute(resolved.group_by(incidents.c.paging_kind))
    }
    forgotten = sa.select(episodes.c.kind, episodes.c.episode).where(episodes.c.scope == text)
    for kind, count in connection.execute(forgotten):
        known[FindingKind(kind)] = max(known.get(FindingKind(kind), 0), int(count))
    ended = connection.execute(
        sa.select(endings.c.kind, endings.c.time, endings.c.incident_id).where(endings.c.scope == text)
    )
    return Scene(
        open=tuple(Incident.from_document(json.loads(document)) for document in open_rows),
        episodes=known,
        endings={FindingKind(kind): Ending(time, incident) for kind, time, incident in ended},
    )


def _write(connection: sa.Connection, batch: _Batch) -> int:
    revision = next_revision(connection)
    if batch.opened:
        rows = [_incident_row(batch, batch.incidents[identity], revision) for identity in batch.opened]
        connection.execute(incidents.insert(), rows)
    for identity in batch.counts.keys() - batch.opened:
        _update_incident(connection, batch, identity, revision)
    for (scope, kind), ending in batch.endings.items():
        here = {"scope": scope, "kind": kind}
        _upsert(connection, endings, here, {"time": ending.time, "incident_id": ending.incident_id})
    connection.execute(findings.insert(), [_finding_row(change) for change in batch.changes])
    if batch.deliveries:
        connection.execute(deliveries.insert(), [_delivery_row(delivery) for delivery in batch.deliveries])
    if batch.taken:
        _settle(connection, batch, revision)
    return revision


def _settle(connection: sa.Connection, batch: _Batch, revision: int) -> None:
    """What a receiver has proven to have waits no more, whether it was written just now or before."""
    given, spared, values = sorted(batch.taken), 0, {"state": DeliveryState.DELIVERED.value, "last_error": None}
    for start in range(0, len(given), VARIABLES_MAX):
        some = deliveries.c.id.in_(given[start : start + VARIABLES_MAX])
        waits = sa.and_(some, deliveries.c.state == DeliveryState.PENDING.value)
        theirs = list(connection.scalars(sa.select(deliveries.c.incident_id).where(waits)))
        spared += connection.execute(deliveries.update().where(waits).values(values)).rowcount
        connection.execute(incidents.update().where(incidents.c.id.in_(theirs)).values(revision=revision))
    batch.receipts[ReceiptOutcome.ACCEPTED] = spared
    batch.receipts[ReceiptOutcome.UNUSED] = max(0, batch.receipts[ReceiptOutcome.UNUSED] - spared)


def _incident_row(batch: _Batch, incident: Incident, revision: int) -> dict[str, Any]:
    fixed = {
        "id": incident.id,
        "scope": incident.scope.text(),
        "paging_kind": incident.paging_kind.value,
        "episode": incident.episode,
        "opened_time": incident.detected_time,
        "findings": batch.counts[incident.id],
    }
    return fixed | _changing(incident) | {"revision": revision}


def _changing(incident: Incident) -> dict[str, Any]:
    document = dumps(incident.document())
    return {"status": incident.status.value, "tier": incident.tier.value, "document": document}


def _update_incident(connection: sa.Connection, batch: _Batch, identity: str, revision: int) -> None:
    values = {"findings": incidents.c.findings + batch.counts[identity], "revision": revision}
    incident = batch.incidents.get(identity)
    if incident is not None:  # else it is late evidence, which is only counted
        values |= _changing(incident)
    connection.execute(incidents.update().where(incidents.c.id == identity).values(values))


def _upsert(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    is_it = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if connection.execute(table.update().where(is_it).values(**values)).rowcount == 0:
        connection.execute(table.insert().values(**key, **values))


def _advance(connection: sa.Connection, topic: str, position: Position) -> None:
    """Write ``position``. Offsets of another log than before mean nothing beside it: they go."""
    if not position.following:
        return
    if connection.scalar(sa.select(logs.c.log).where(logs.c.topic == topic)) != position.log:
        connection.execute(positions.delete().where(positions.c.topic == topic))
        _upsert(connection, logs, {"topic": topic}, {"log": position.log})
    for partition, offset in position.following.items():
        _upsert(connection, positions, {"topic": topic, "partition": partition}, {"next_offset": offset})


def _finding_row(change: Change) -> dict[str, Any]:
    finding = change.finding
    shown = {
        "id": finding.id,
        "time": finding.time,
        "detector": finding.detector,
        "kind": finding.kind.value,
        "state": finding.state.value,
        "severity": finding.severity.value,
        "title": finding.title,
        "rank": finding.rank,
        "node": finding.node,
        "gpu": finding.gpu,
        "parameter": finding.parameter,
        "step": finding.step,
        "onset_step": finding.onset_step,
    }
    return {"id": finding.id, "incident_id": change.incident_id, "time": finding.time, "document": dumps(shown)}


def _delivery_row(delivery: Delivery) -> dict[str, Any]:
    names = ("id", "incident_id", "receiver", "transition", "body", "created_time", "next_attempt_time")
    row = {name: getattr(delivery, name) for name in (*names, "attempts", "waited_seconds")}
    return row | {"state": DeliveryState.PENDING.value, "last_error": None}


def current_revision(connection: sa.Connection) -> int:
    """The revision of the newest change."""
    return int(connection.execute(sa.select(meta.c.value).where(meta.c.name == "revision")).scalar_one())


def next_revision(connection: sa.Connection) -> int:
    """One revision more, for this transaction."""
    connection.execute(meta.update().where(meta.c.name == "revision").values(value=meta.c.value + 1))
    return current_revision(connection)


def mark(connection: sa.Connection, marks: Iterable[Mark]) -> list[str]:
    """Write what came of tries; return the ids of deliveries that are not in the outbox (yet)."""
    revision, absent = next_revision(connection), []
    for item in marks:
        values = {
            name: getattr(item, name) for name in ("attempts", "waited_seconds", "next_attempt_time", "last_error")
        }
        pending = sa.and_(deliveries.c.id == item.delivery_id, deliveries.c.state == DeliveryState.PENDING.value)
        incident_id = connection.scalar(sa.select(deliveries.c.incident_id).where(deliveries.c.id == item.delivery_id))
        if incident_id is None:
            absent.append(item.delivery_id)
            continue
        connection.execute(deliveries.update().where(pending).values(state=item.state.value, **values))
        connection.execute(incidents.update().where(incidents.c.id == incident_id).values(revision=revision))
    return absent


def retire(connection: sa.Connection, receivers: Sequence[str]) -> int:
    """Pending deliveries for anybody but ``receivers`` are dead; return how many."""
    values = {
        "state": DeliveryState.DEAD.value,
        "last_error": f"{Outcome.UNKNOWN_RECEIVER.value}: it is no longer configured",
    }
    theirs = sa.and_(deliveries.c.state == DeliveryState.PENDING.value, deliveries.c.receiver.not_in(receivers))
    return connection.execute(deliveries.update().where(theirs).values(values)).rowcount
