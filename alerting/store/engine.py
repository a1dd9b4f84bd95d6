"""How the store's database is opened.

SQLite runs in WAL mode: one commit is one fsync of one file, and a reader (the dashboards, in this process or another)
neither waits for the writer nor makes a page wait, which with a rollback journal it would. WAL has two conditions, and
both are kept here. It needs a local disk, which is the bus folder's condition too. And the SQLite of many interpreters
has a fault when several connections checkpoint at once: here one connection alone can, because a lock file admits one
writing process, which has one writing connection, and every reader is opened read-only. ``synchronous=FULL`` makes a
commit survive the machine's power; a commit costs a few milliseconds (docs/alerting.md has the measurement).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from alerting.errors import StoreInUse, StoreMismatch, StoreUnavailable
from alerting.store.tables import SCHEMA_VERSION, meta, metadata

BUSY_SECONDS = 0.5
"""Nobody else writes; this covers the moments in which SQLite itself holds the file, such as recovery after a crash."""


def writing_engine(path: Path) -> sa.Engine:
    """The engine of the one writer. Nothing is opened yet."""
    engine = _engine(path, "rwc")

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, too late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reading_engine(path: Path) -> sa.Engine:
    """An engine that cannot write and cannot checkpoint."""
    return _engine(path, "ro")


def _engine(path: Path, mode: str) -> sa.Engine:
    location = f"file:{quote(str(path))}?mode={mode}&uri=true"
    arguments = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    return sa.create_engine(f"sqlite:///{location}", connect_args=arguments, pool_size=1, max_overflow=0)


@contextmanager
def mapped(path: Path, action: str) -> Iterator[None]:
    """Everything that the driver raises comes out as :class:`StoreUnavailable`."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise StoreUnavailable(str(path), action, cause) from error


class WriterLock:
    """One writing process per store: a lock on ``PATH.lock``, which ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, or raise :class:`StoreInUse`. Taking it twice is once."""
        if self._file is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise StoreInUse(str(self._path)) from error
        self._file = file

    def release(self) -> None:
        """Let the next one in."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def prepare(engine: sa.Engine, path: Path) -> None:
    """Make the tables of a new store, and refuse a store of another version."""
    with engine.begin() as connection:
        metadata.create_all(connection)
        for name, value in (("schema_version", SCHEMA_VERSION), ("revision", 0)):
            if connection.scalar(sa.select(meta.c.value).where(meta.c.name == name)) is None:
                connection.execute(meta.insert().values(name=name, value=value))
        found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema_version"))
    if found != SCHEMA_VERSION:
        raise StoreMismatch(str(path), found, SCHEMA_VERSION)
