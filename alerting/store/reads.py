"""What is asked of the store. Each function is given a connection and changes nothing."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from alerting.delivery import Delivery, DeliveryState
from alerting.incident import Incident, Status, Tier
from alerting.store.tables import deliveries, findings, incidents, logs, meta, positions
from telemetry_bus.findings import FindingKind

VARIABLES_MAX = 500
"""How many values one statement names; SQLite takes 999 in its oldest versions."""
FINDINGS_SHOWN_MAX = 500
"""The findings that are shown of one incident: the newest ones. A person reads fewer."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a topic has been taken: the next offset of each partition, and the identity of the log that they are of.

    ``log`` is ``None`` and ``following`` empty before the first record.
    """

    log: str | None
    following: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class StoredIncident:
    """An incident with what the store knows of it besides.

    A delivery is ``{receiver, transition, state, attempts, last_error}``.
    """

    incident: Incident
    findings: int
    revision: int
    deliveries: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """How the store stands. ``oldest_pending_time`` is wall clock, ``None`` where nothing waits."""

    open_incidents: Mapping[Tier, int]
    deliveries: Mapping[DeliveryState, int]
    oldest_pending_time: float | None


def position(connection: sa.Connection, topic: str) -> Position:
    """How far ``topic`` has been taken."""
    chosen = sa.select(positions.c.partition, positions.c.next_offset).where(positions.c.topic == topic)
    following = {int(partition): int(offset) for partition, offset in connection.execute(chosen)}
    return Position(connection.scalar(sa.select(logs.c.log).where(logs.c.topic == topic)), following)


def due(connection: sa.Connection, receiver: str, now: float, limit: int, ahead_seconds_max: float) -> list[Delivery]:
    """The first pending delivery of each of the receiver's lanes whose time has come, the longest waiting first.

    A time further ahead than the longest wait is one that the clock has jumped back from: it has come.
    """
    other = deliveries.alias()
    first_of_lane = (
        sa.select(sa.func.min(other.c.seq))
        .where(
            other.c.state == DeliveryState.PENDING.value,
            other.c.receiver == deliveries.c.receiver,
            other.c.incident_id == deliveries.c.incident_id,
        )
        .scalar_subquery()
    )
    has_come = sa.or_(deliveries.c.next_attempt_time <= now, deliveries.c.next_attempt_time > now + ahead_seconds_max)
    is_mine = sa.and_(deliveries.c.state == DeliveryState.PENDING.value, deliveries.c.receiver == receiver)
    chosen = sa.select(deliveries).where(is_mine, deliveries.c.seq == first_of_lane, has_come)
    return [_delivery(row) for row in connection.execute(chosen.order_by(deliveries.c.next_attempt_time).limit(limit))]


def _delivery(row: sa.Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        incident_id=row.incident_id,
        receiver=row.receiver,
        transition=row.transition,
        body=row.body,
        created_time=row.created_time,
        next_attempt_time=row.next_attempt_time,
        attempts=row.attempts,
        waited_seconds=row.waited_seconds,
    )


def standing(connection: sa.Connection) -> Standing:
    """Counts of what is open and of what waits."""
    states = sa.select(deliveries.c.state, sa.func.count()).group_by(deliveries.c.state)
    pending = deliveries.c.state == DeliveryState.PENDING.value
    return Standing(
        open_incidents=open_by_tier(connection),
        deliveries=dict.fromkeys(DeliveryState, 0)
        | {DeliveryState(state): count for state, count in connection.execute(states)},
        oldest_pending_time=connection.scalar(sa.select(sa.func.min(deliveries.c.created_time)).where(pending)),
    )


def newest(connection: sa.Connection, limit: int, open_only: bool) -> list[StoredIncident]:
    """Incidents, newest first."""
    chosen = sa.select(incidents)
    if open_only:
        chosen = chosen.where(incidents.c.status == Status.FIRING.value)
    return _stored(
        connection,
        connection.execute(chosen.order_by(incidents.c.opened_time.desc(), incidents.c.id).limit(limit)).all(),
    )


def changed_since(connection: sa.Connection, revision: int, limit: int) -> tuple[int, list[StoredIncident]]:
    """The newest revision, and up to ``limit`` incidents changed after ``revision``, in the order of their last change.

    If more have changed: the newest open ones, and if there is room left, those that were resolved last.
    """
    current = int(connection.execute(sa.select(meta.c.value).where(meta.c.name == "revision")).scalar_one())
    has_changed, is_open = incidents.c.revision > revision, incidents.c.status == Status.FIRING.value
    opened = sa.select(incidents.c.id).where(has_changed, is_open).order_by(incidents.c.opened_time.desc())
    ids = list(connection.scalars(opened.limit(limit)))
    over = sa.select(incidents.c.id).where(has_changed, ~is_open).order_by(incidents.c.revision.desc())
    ids += connection.scalars(over.limit(limit - len(ids)))
    rows = [
        row
        for start in range(0, len(ids), VARIABLES_MAX)
        for row in connection.execute(
            sa.select(incidents).where(incidents.c.id.in_(ids[start : start + VARIABLES_MAX]))
        )
    ]
    return current, _stored(connection, sorted(rows, key=lambda row: row.revision))


def open_by_tier(connection: sa.Connection) -> dict[Tier, int]:
    """How many incidents are open, by tier; none is zero."""
    tiers = (
        sa.select(incidents.c.tier, sa.func.count())
        .where(incidents.c.status == Status.FIRING.value)
        .group_by(incidents.c.tier)
    )
    return dict.fromkeys(Tier, 0) | {Tier(tier): count for tier, count in connection.execute(tiers)}


def firing(connection: sa.Connection, kinds: Collection[FindingKind], limit: int) -> list[Incident]:
    """Up to ``limit`` open incidents that were opened with one of ``kinds``, the newest."""
    names = [kind.value for kind in kinds]
    is_it = sa.and_(incidents.c.status == Status.FIRING.value, incidents.c.paging_kind.in_(names))
    chosen = sa.select(incidents.c.document).where(is_it).order_by(incidents.c.opened_time.desc()).limit(limit)
    return [Incident.from_document(json.loads(document)) for document in connection.scalars(chosen)]


def one(connection: sa.Connection, identity: str) -> tuple[StoredIncident, list[dict[str, Any]]] | None:
    """One incident with its findings, newest last, or ``None``."""
    rows = connection.execute(sa.select(incidents).where(incidents.c.id == identity)).all()
    if not rows:
        return None
    chosen = sa.select(findings.c.document).where(findings.c.incident_id == identity)
    documents = list(connection.scalars(chosen.order_by(findings.c.seq.desc()).limit(FINDINGS_SHOWN_MAX)))
    return _stored(connection, rows)[0], [json.loads(document) for document in reversed(documents)]


def _stored(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[StoredIncident]:
    sent: dict[str, list[Mapping[str, Any]]] = {row.id: [] for row in rows}
    wanted = ("receiver", "transition", "state", "attempts", "last_error")
    for start in range(0, len(rows), VARIABLES_MAX):
        ids = [row.id for row in rows[start : start + VARIABLES_MAX]]
        columns = [deliveries.c.incident_id, *(deliveries.c[name] for name in wanted)]
        chosen = sa.select(*columns).where(deliveries.c.incident_id.in_(ids)).order_by(deliveries.c.seq)
        for row in connection.execute(chosen):
            sent[row.incident_id].append({name: getattr(row, name) for name in wanted})
    return [
        StoredIncident(
            Incident.from_document(json.loads(row.document)), row.findings, row.revision, tuple(sent[row.id])
        )
        for row in rows
    ]
