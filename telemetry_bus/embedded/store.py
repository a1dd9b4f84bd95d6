"""The log's tables, in plain blocking calls: what the writer's and the readers' threads do.

SQLite comes with the package (apsw carries a current one) and not from the interpreter, whose old library has a bug
when several processes reset the write-ahead log. Only this file imports apsw.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from telemetry_bus.bus import Record
from telemetry_bus.errors import BusUnavailable, InaccessibleFolder, LogRemoved, UnreadableLog
from telemetry_bus.topics import Topic

BUSY_SECONDS = 5.0
"""How long a writer waits for another process's commit (4 ms each) before it says that the bus is away."""
OPEN_ATTEMPTS, OPEN_AGAIN_SECONDS = 50, 0.02
BATCH_RECORDS = 256
"""One read: enough to make a thread's hop cheap, short enough that no read transaction holds up a checkpoint."""
BATCH_BYTES = 4 * 1024 * 1024
TRIM_RECORDS = 256
"""Records deleted in one transaction, so that a publish never waits long behind retention."""
CHECK_INSTRUCTIONS = 10_000
"""Of SQLite's machine, between two questions whether a check should give up."""

PAGE_BYTES = 16 * 1024
"""Of a new log. Large frames are written and read page by page: of SQLite's 4 KiB a fleet of 300,000 GPUs needs 20,000
calls a second in each process. A small commit writes some 80 KiB instead of 20 for it."""

WAL_BYTES_KEPT = 64 * 1024 * 1024
"""To which the write-ahead file is cut after a long reader has let it grow."""
CHECKPOINT_PAGES = 256
"""4 MiB of the write-ahead log are brought into the database at once, as with SQLite's own pages and number."""

_GIB = 1024**3
_MIB = 1024**2
_HOUR = 3600.0
_DAY = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class TopicLimit:
    """How much of a topic is kept: at most ``bytes`` of payloads, none older than ``age_seconds``."""

    bytes: int
    age_seconds: float


DEFAULT_LIMITS: Mapping[Topic, TopicLimit] = {
    Topic.GPU: TopicLimit(_GIB, 6 * _HOUR),
    Topic.TRAIN: TopicLimit(_GIB, 7 * _DAY),
    Topic.LINKS: TopicLimit(_GIB // 4, 6 * _HOUR),
    Topic.METRICS: TopicLimit(_GIB // 2, 7 * _DAY),
    Topic.EVENTS: TopicLimit(64 * _MIB, 30 * _DAY),
    Topic.BACKLOG: TopicLimit(_GIB, _DAY),
    Topic.TICKS: TopicLimit(64 * _MIB, 7 * _DAY),
    Topic.FINDINGS: TopicLimit(64 * _MIB, 90 * _DAY),
    Topic.VERDICTS: TopicLimit(16 * _MIB, 30 * _DAY),
    Topic.DEAD_LETTER: TopicLimit(64 * _MIB, 7 * _DAY),
}
"""A tick weighs 260 bytes: 64 MiB are three days of them. 1,000 GPUs at 1 Hz write some 200 KiB a second: 1 GiB is 1.4
hours."""

FORMAT = 1
"""SQLite's ``user_version`` of the log: raised when the tables change, so nobody writes what another cannot read."""
_TABLES = """
CREATE TABLE IF NOT EXISTS log (
    offset INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, time REAL NOT NULL, payload BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS log_topic ON log (topic);
CREATE INDEX IF NOT EXISTS log_time ON log (topic, time);
CREATE TABLE IF NOT EXISTS sizes (
    topic TEXT PRIMARY KEY, bytes INTEGER NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (
    reader TEXT NOT NULL, topic TEXT NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (reader, topic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL);
"""


def sqlite_version() -> str:
    """The version of the SQLite that carries the log."""
    return str(apsw.sqlite_lib_version())


class LogFile:
    """One connection to the log. It belongs to one thread."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._path = folder / "log.sqlite"
        with self._failing("open"):
            self._db = apsw.Connection(str(self._path))
            try:
                self._db.set_busy_timeout(int(BUSY_SECONDS * 1000))
                self._set_up()
            except apsw.Error:
                self._db.close()
                raise
        self._file = self._identity_of_file()

    def _set_up(self) -> None:
        """Make the connection's settings. While another process closes the log as its last user, or brings it back
        after a crash, SQLite says at once that it is busy, without a wait: it is asked again for a second."""
        for attempt in range(OPEN_ATTEMPTS):
            try:
                # All of them run only once all of their answers have been taken.
                self._db.execute(
                    f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
                    f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA journal_size_limit = {WAL_BYTES_KEPT};"
                ).fetchall()
            except apsw.BusyError:
                if attempt == OPEN_ATTEMPTS - 1:
                    raise
                time.sleep(OPEN_AGAIN_SECONDS)
            else:
                return

    def _identity_of_file(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def check_in_place(self) -> None:
        """Raise LogRemoved if the file in the folder is not the one that is open here: SQLite would not notice."""
        if self._file is None or self._identity_of_file() != self._file:
            raise LogRemoved(self.url)

    def check_pages(self, give_up: Callable[[], bool]) -> bool:
        """Look through the whole file for damage; False if ``give_up`` said True before the end. Raises UnreadableLog.

        It reads every page, which for a log at its limits is gibibytes: hence ``give_up``.
        """
        self._db.set_progress_handler(give_up, CHECK_INSTRUCTIONS)
        try:
            with self._failing("check its pages"):
                found = [str(text) for (text,) in self._db.execute("PRAGMA quick_check(1)")]
        except BusUnavailable as error:
            if isinstance(error.__cause__, apsw.InterruptError):
                return False
            raise
        finally:
            self._db.set_progress_handler(None)
        if found != ["ok"]:
            raise UnreadableLog(self.url, "; ".join(found))
        return True

    def create(self) -> None:
        """Make the tables where they are missing. Raises UnreadableLog for tables of another version."""
        if self._number("PRAGMA user_version") == FORMAT:
            return  # without waiting for a lock that another process may hold
        with self._failing("create its tables"), _Immediate(self._db):
            found = self._number("PRAGMA user_version")
            tables = self._number("SELECT count(*) FROM sqlite_schema")
            if found != FORMAT and tables:
                raise UnreadableLog(self.url, f"its format is {found}, this version reads format {FORMAT}")
            self._db.execute(_TABLES)
            self._db.execute("INSERT INTO identity VALUES (?)", (str(uuid.uuid4()),))
            self._db.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def append(self, batch: Sequence[tuple[Topic, Sequence[bytes]]], now: float) -> list[list[int]]:
        """Write ``batch`` in one durable transaction and return the offsets, shaped like ``batch``."""
        with self._failing("append"), _Immediate(self._db):
            return [[self._insert(topic, payload, now) for payload in payloads] for topic, payloads in batch]

    def _insert(self, topic: Topic, payload: bytes, now: float) -> int:
        self._db.execute("INSERT INTO log (topic, time, payload) VALUES (?, ?, ?)", (topic.value, now, payload))
        offset = self._db.last_insert_rowid()
        self._db.execute(
            "INSERT INTO sizes VALUES (?, ?, ?) "
            "ON CONFLICT (topic) DO UPDATE SET bytes = bytes + excluded.bytes, last = excluded.last",
            (topic.value, len(payload), offset),
        )
        return offset

    def read(self, topics: Iterable[Topic], cursor: int) -> tuple[list[Record], int]:
        """Records of ``topics`` from offset ``cursor`` on, in the log's order, and the cursor that follows them.

        Where nothing more is left the cursor is the log's end, so that the next read does not walk over other topics.
        """
        end = self.log_end()
        query, values = self.reading(topics, cursor)
        records: list[Record] = []
        size = 0
        complete = True
        with self._failing("read"):
            for offset, topic, time, payload in self._db.execute(query, values):
                records.append(Record(Topic(topic), 0, offset, time, payload))
                size += len(payload)
                if size >= BATCH_BYTES or len(records) == BATCH_RECORDS:
                    complete = False
                    break
        following = records[-1].offset + 1 if records else cursor
        return records, max(following, end) if complete else following

    @staticmethod
    def reading(topics: Iterable[Topic], cursor: int) -> tuple[str, list[str | int]]:
        """The query for one batch and its values.

        Each topic's index is in the log's order already: SQLite merges them and stops at the limit. With
        ``topic IN (...)`` it would sort everything behind the cursor, for every batch.
        """
        each = "SELECT offset, topic, time, payload FROM log WHERE topic = ? AND offset >= ?"
        values: list[str | int] = [value for topic in topics for value in (topic.value, cursor)]
        query = f"{' UNION ALL '.join([each] * (len(values) // 2))} ORDER BY 1 LIMIT ?"
        return query, [*values, BATCH_RECORDS]

    def identity(self) -> str:
        """The UUID that the log got when it was made."""
        with self._failing("read"):
            ((identity,),) = self._db.execute("SELECT id FROM identity")
        return str(identity)

    def earliest(self, topic: Topic) -> int:
        """The oldest offset of ``topic``; the end of the log if it holds nothing."""
        return self._first("SELECT min(offset) FROM log WHERE topic = ?", topic.value)

    def at_time(self, topic: Topic, time: float) -> int:
        """The first offset of ``topic`` appended at ``time`` or later; the end of the log if there is none."""
        return self._first("SELECT min(offset) FROM log WHERE topic = ? AND time >= ?", topic.value, time)

    def _first(self, query: str, *values: object) -> int:
        # The end is read first: a record that is appended between the two statements is not passed over.
        end = self.log_end()
        found = self._number(query, *values)
        return end if found is None else found

    def end(self, topic: Topic) -> int:
        """The offset that follows the newest record of ``topic``, trimmed or not; 0 if it never had one."""
        found = self._number("SELECT last FROM sizes WHERE topic = ?", topic.value)
        return 0 if found is None else found + 1

    def log_end(self) -> int:
        """The offset that the next record of any topic will have at least."""
        return (self._number("SELECT seq FROM sqlite_sequence WHERE name = 'log'") or 0) + 1

    def _number(self, query: str, *values: object) -> int | None:
        with self._failing("read"):
            row = self._db.execute(query, values).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def remember(self, reader: str, offsets: Mapping[Topic, int]) -> None:
        """Store how far ``reader`` has come; it never goes back."""
        rows = [(reader, topic.value, offset) for topic, offset in offsets.items()]
        with self._failing("commit an offset"), _Immediate(self._db):
            self._db.executemany(
                "INSERT INTO positions VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET offset = max(offset, excluded.offset)",
                rows,
            )

    def remembered(self, reader: str) -> dict[Topic, int]:
        """How far ``reader`` has come."""
        with self._failing("read"):
            rows = self._db.execute("SELECT topic, offset FROM positions WHERE reader = ?", (reader,)).fetchall()
        return {Topic(str(topic)): int(str(offset)) for topic, offset in rows}

    def trim(self, limits: Mapping[Topic, TopicLimit], now: float) -> int:
        """Delete some of what is over its limit and return how many records that were; call again until it is none."""
        return sum(self._trim_topic(topic, limit, now) for topic, limit in limits.items())

    def _trim_topic(self, topic: Topic, limit: TopicLimit, now: float) -> int:
        with self._failing("trim"), _Immediate(self._db):
            size = self._number("SELECT bytes FROM sizes WHERE topic = ?", topic.value) or 0
            doomed: list[tuple[int]] = []
            freed = 0
            for offset, time, length in self._db.execute(
                "SELECT offset, time, length(payload) FROM log WHERE topic = ? ORDER BY offset LIMIT ?",
                (topic.value, TRIM_RECORDS),
            ):
                if size - freed <= limit.bytes and time >= now - limit.age_seconds:
                    break
                doomed.append((offset,))
                freed += length
            self._db.executemany("DELETE FROM log WHERE offset = ?", doomed)
            self._db.execute("UPDATE sizes SET bytes = bytes - ? WHERE topic = ?", (freed, topic.value))
        return len(doomed)

    def _failing(self, action: str) -> "_Failing":
        return _Failing(self.url, action)


class _Immediate:
    """A write transaction: it takes the lock at once, so that two writers never deadlock half way."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except apsw.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


class _Failing:
    """Maps SQLite's errors to ours."""

    def __init__(self, url: str, action: str) -> None:
        self._url, self._action = url, action

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, apsw.NotADBError | apsw.CorruptError):
            raise UnreadableLog(self._url, error) from error
        if isinstance(error, apsw.ReadOnlyError):
            raise InaccessibleFolder(self._url, error) from error
        if isinstance(error, apsw.Error):
            raise BusUnavailable(self._url, self._action, error) from error
