"""How much the store keeps, and how it is brought back to that. What is open or pending is never dropped."""

from dataclasses import dataclass

import sqlalchemy as sa

from alerting.delivery import DeliveryState
from alerting.incident import Status
from alerting.store.tables import deliveries, endings, episodes, findings, incidents

FINDINGS_KEPT = 1_000_000
"""Rows of some 400 bytes: 400 MB. Ids must be remembered for longer than the bus keeps findings."""
RESOLVED_KEPT = 20_000
"""Resolved incidents of some 3 KB, the last changed: 60 MB, months of nights. Open ones are never dropped."""
ENDINGS_KEPT = 500_000
"""Rows of some 150 bytes, for each scope and kind the last end and the last episode: 150 MB together."""
PRUNED_AT_ONCE = 500
"""Incidents in one transaction: under 0.2 s on a busy 2-core machine (20,000 took 8 s), a fifth of the deadline."""
DELIVERIES_KEPT = 200_000
"""Rows of some 3 KB that are done with: 600 MB. What is pending is never dropped."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many rows of each are kept."""

    findings: int = FINDINGS_KEPT
    deliveries: int = DELIVERIES_KEPT
    resolved: int = RESOLVED_KEPT
    endings: int = ENDINGS_KEPT


def prune(connection: sa.Connection, kept: Bounds) -> int:
    """One transaction's inside: forget the oldest of what is beyond ``kept``; return how many rows went."""
    gone = _oldest(connection, findings, findings.c.seq > 0, kept.findings)
    gone += _oldest(connection, deliveries, deliveries.c.state != DeliveryState.PENDING.value, kept.deliveries)
    for table in (endings, episodes):
        gone += _beyond(connection, table, kept.endings)
    return gone + _resolved(connection, kept.resolved)


def _oldest(connection: sa.Connection, table: sa.Table, may_go: sa.ColumnElement[bool], kept: int) -> int:
    newest = connection.scalar(sa.select(sa.func.max(table.c.seq))) or 0
    return connection.execute(table.delete().where(may_go, table.c.seq <= newest - kept)).rowcount


def _beyond(connection: sa.Connection, table: sa.Table, kept: int) -> int:
    over = (connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0) - kept
    if over <= 0:
        return 0
    rowid: sa.ColumnClause[int] = sa.literal_column("rowid")
    oldest = sa.select(rowid).select_from(table).order_by(table.c.time).limit(min(over, PRUNED_AT_ONCE))
    return connection.execute(table.delete().where(rowid.in_(oldest))).rowcount


def _resolved(connection: sa.Connection, kept: int) -> int:
    """The incidents go with their deliveries; what is remembered of one is its episode."""
    is_over = incidents.c.status == Status.RESOLVED.value
    over = (connection.scalar(sa.select(sa.func.count()).select_from(incidents).where(is_over)) or 0) - kept
    if over <= 0:
        return 0
    of_it = deliveries.c.incident_id == incidents.c.id
    waits = sa.exists().where(of_it, deliveries.c.state == DeliveryState.PENDING.value)
    columns = (incidents.c.id, incidents.c.scope, incidents.c.paging_kind, incidents.c.episode, incidents.c.opened_time)
    chosen = sa.select(*columns).where(is_over, ~waits).order_by(incidents.c.revision)
    rows = connection.execute(chosen.limit(min(over, PRUNED_AT_ONCE))).all()
    for row in rows:
        _remember_episode(connection, row.scope, row.paging_kind, row.episode, row.opened_time)
    ids = [row.id for row in rows]
    connection.execute(deliveries.delete().where(deliveries.c.incident_id.in_(ids)))
    return connection.execute(incidents.delete().where(incidents.c.id.in_(ids))).rowcount


def _remember_episode(connection: sa.Connection, scope: str, kind: str, episode: int, time: float) -> None:
    is_it = sa.and_(episodes.c.scope == scope, episodes.c.kind == kind)
    known = connection.scalar(sa.select(episodes.c.episode).where(is_it))
    if known is None:
        connection.execute(episodes.insert().values(scope=scope, kind=kind, episode=episode, time=time))
    elif episode > known:
        connection.execute(episodes.update().where(is_it).values(episode=episode, time=time))
