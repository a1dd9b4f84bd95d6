"""The tables of the store.

An incident is kept as a JSON document; what is searched for stands beside it in columns. ``revision`` grows by one with
every transaction that changes an incident or one of its deliveries.
"""

import sqlalchemy as sa

SCHEMA_VERSION = 1

metadata = sa.MetaData()

meta = sa.Table(
    "meta", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.BigInteger, nullable=False)
)
"""``schema_version`` and ``revision``."""

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)
"""How far the bus has been read, written in the same transaction as what was made of it."""

logs = sa.Table(
    "logs", metadata, sa.Column("topic", sa.String, primary_key=True), sa.Column("log", sa.String, nullable=False)
)
"""The identity of the log in which the positions of a topic mean something: a log made anew has another one."""

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("scope", sa.String, nullable=False),
    sa.Column("paging_kind", sa.String, nullable=False),
    sa.Column("episode", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("tier", sa.String, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("opened_time", sa.Float, nullable=False),
    sa.Column("findings", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("scope", "paging_kind", "episode"),
    sa.Index("incidents_by_revision", "revision"),
    sa.Index("incidents_by_time", "opened_time"),
    sa.Index("incidents_open", "status", "tier"),
)

endings = sa.Table(
    "endings",
    metadata,
    sa.Column("scope", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("incident_id", sa.String),
    sa.Index("endings_by_time", "time"),
)
"""When each kind was last said to be over; see :class:`alerting.group.Ending`."""

episodes = sa.Table(
    "episodes",
    metadata,
    sa.Column("scope", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("episode", sa.Integer, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Index("episodes_by_time", "time"),
)
"""The last episode of those whose incidents were forgotten, so that none of its ids is used again."""

findings = sa.Table(
    "findings",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("incident_id", sa.String),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("findings_by_incident", "incident_id", "seq"),
)
"""Every finding that was taken, once; the unique id is what makes a finding that comes again do nothing."""

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("receiver", sa.String, nullable=False),
    sa.Column("transition", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_time", sa.Float, nullable=False),
    sa.Column("next_attempt_time", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("waited_seconds", sa.Float, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Index("deliveries_in_lane", "state", "receiver", "incident_id", "seq"),
    sa.Index("deliveries_by_incident", "incident_id", "seq"),
)
"""The outbox. ``seq`` is the order within a lane."""
