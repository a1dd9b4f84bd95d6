"""The embedded log's own failures: locks, folders, damaged files, and a write-ahead log that does not grow for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from telemetry_bus import BusUnavailable, Earliest, Latest, Topic, UnknownBus, UnsuitableFolder, open_bus
from telemetry_bus.embedded import DEFAULT_LIMITS, EmbeddedBus, TopicLimit, sqlite_version
from telemetry_bus.embedded.folder import NETWORK_FILESYSTEMS, filesystem_of, refuse_network
from telemetry_bus.embedded.store import CHECKPOINT_PAGES, PAGE_BYTES, WAL_BYTES_KEPT, LogFile
from telemetry_bus.errors import InaccessibleFolder, LogRemoved, UnreadableLog
from telemetry_bus.runtime.clock import ManualClock, SystemClock

NOBODY = 65534
_MIB = 1024 * 1024
HOLDER = """
import sqlite3, sys
log = sqlite3.connect(sys.argv[1], isolation_level=None)
log.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def lock_held(folder: Path) -> Iterator[None]:
    """Another process holds the log's write lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "log.sqlite")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.stdin.close()
        holder.wait()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: what a mode forbids is tried as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Return a folder that every user of the machine can reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


async def opened(folder: Path) -> None:
    """Open and close a bus."""
    async with EmbeddedBus(folder, SystemClock()):
        pass


async def test_a_lock_held_too_long_means_try_again_and_then_it_works(tmp_path: Path) -> None:
    """The publisher is told, readers go on, nothing of what failed is there, and the next call succeeds."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [b"before"])
        with lock_held(tmp_path):
            publishing = asyncio.ensure_future(bus.publish(Topic.TRAIN, [b"failed"]))
            async with bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
                assert [record.payload for record in await anext(aiter(subscription))] == [b"before"]
            with pytest.raises(BusUnavailable) as away:
                await publishing
        assert away.value.retryable
        assert bus.url in str(away.value)
        assert "locked" in str(away.value)
        await bus.publish(Topic.TRAIN, [b"after"])
        async with bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
            assert [record.payload for record in await anext(aiter(subscription))] == [b"before", b"after"]


async def test_a_lock_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Other processes' commits are ordinary."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        with lock_held(tmp_path):
            publishing = asyncio.ensure_future(bus.publish(Topic.TRAIN, [b"payload"]))
            await asyncio.sleep(0.02)
            assert not publishing.done()
        assert await publishing == [1]


def mountinfo(folder: Path, *mounts: tuple[str, str]) -> Path:
    """A file as the kernel's /proc/self/mountinfo."""
    file = folder / "mountinfo"
    file.write_text("".join(f"36 35 98:0 / {point} rw,noatime master:1 - {kind} dev rw\n" for point, kind in mounts))
    return file


@pytest.mark.parametrize("kind", sorted(NETWORK_FILESYSTEMS))
def test_a_folder_on_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    """The message names the folder, the file system and what to use instead."""
    file = mountinfo(tmp_path, ("/", "ext4"), (str(tmp_path), kind))
    with pytest.raises(UnsuitableFolder) as refused:
        refuse_network(tmp_path / "bus", file)
    for part in (str(tmp_path / "bus"), f"({kind})", "Set the bus to file:///"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home/me/bus", "nfs4"),
        ("/homes", "ext4"),
        ("/home/me/local/bus", "xfs"),
        ("/with space/bus", "lustre"),
        ("/twice", "tmpfs"),
    ],
)
def test_the_innermost_mount_holds_a_folder(tmp_path: Path, folder: str, kind: str) -> None:
    """Not the first, not one whose name begins alike, and of two in one place the later."""
    mounts = [("/", "ext4"), ("/home", "nfs4"), ("/home/me/local", "xfs"), (r"/with\040space", "lustre")]
    file = mountinfo(tmp_path, *mounts, ("/twice", "nfs"), ("/twice", "tmpfs"))
    assert filesystem_of(Path(folder), file) == kind


def test_where_no_mounts_are_listed_nothing_is_refused(tmp_path: Path) -> None:
    """Other systems than Linux have no such file."""
    refuse_network(tmp_path, tmp_path / "missing")


async def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "bus").write_text("")
    for folder in (tmp_path / "bus", tmp_path / "bus" / "below"):
        with pytest.raises(InaccessibleFolder, match="mend its owner or mode") as refused:
            await opened(folder)
        assert str(folder) in str(refused.value)


async def test_a_folder_that_may_not_be_written_is_named(open_to_all: Path) -> None:
    """Neither one that is there nor one that would have to be made."""
    (open_to_all / "bus").mkdir(mode=0o555)
    with as_nobody():
        for folder in (open_to_all / "bus", open_to_all / "bus" / "below"):
            with pytest.raises(InaccessibleFolder) as refused:
                await opened(folder)
            assert str(folder) in str(refused.value)


async def test_a_log_that_may_not_be_written_is_named(open_to_all: Path) -> None:
    """A log that another user has made is not "try again"."""
    await opened(open_to_all / "bus")
    (open_to_all / "bus").chmod(0o777)
    for file in (open_to_all / "bus").iterdir():
        file.chmod(0o444)
    with as_nobody(), pytest.raises(InaccessibleFolder) as refused:
        await opened(open_to_all / "bus")
    assert "bus" in str(refused.value)


async def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    """Rows of a training run are nobody else's."""
    await opened(tmp_path / "state" / "bus")
    assert (tmp_path / "state" / "bus").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage", [b"this is no database at all, but a text" * 200, bytes(8192)], ids=["text", "zeros"]
)
async def test_a_log_that_is_no_log_is_named_with_what_to_do(tmp_path: Path, damage: bytes) -> None:
    """It is not overwritten, and nobody is told to try again."""
    (tmp_path / "log.sqlite").write_bytes(damage)
    with pytest.raises(UnreadableLog, match=r"move log\.sqlite") as refused:
        await opened(tmp_path)
    assert tmp_path.as_uri() in str(refused.value)
    assert not refused.value.retryable
    assert (tmp_path / "log.sqlite").read_bytes() == damage


async def test_pages_that_were_damaged_are_noticed_when_they_are_read(tmp_path: Path) -> None:
    """A reader is told and does not wait for ever."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [bytes(1000)] * 200)
    file = tmp_path / "log.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(UnreadableLog):
        async with EmbeddedBus(tmp_path, SystemClock()) as bus, bus.subscribe([Topic.TRAIN], Earliest()) as damaged:
            await anext(aiter(damaged))


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_a_log_that_is_taken_away_is_noticed_by_publishers_and_readers(tmp_path: Path, replaced: bool) -> None:
    """SQLite goes on writing into a deleted file: nothing is acknowledged that no other process can ever read."""
    folder = tmp_path / "bus"
    async with EmbeddedBus(folder, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [b"before"])
        assert (await bus.ends(Topic.TRAIN))[0] == 2
        await asyncio.to_thread(shutil.rmtree, folder)
        if replaced:
            await opened(folder)
        with pytest.raises(BusUnavailable, match="deleted or replaced") as told:
            await bus.publish(Topic.TRAIN, [b"after"])
        assert isinstance(told.value, LogRemoved)
        assert told.value.retryable
        with pytest.raises(LogRemoved, match="Restart every process"):
            await bus.commit("reader", {Topic.TRAIN: {0: 1}})
        with pytest.raises(LogRemoved):
            (await bus.ends(Topic.TRAIN))[0]


async def test_a_check_finds_damage_that_no_read_has_met(tmp_path: Path) -> None:
    """A page in the middle of the file is overwritten: opening goes well, the check does not."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [os.urandom(1000) for _ in range(1000)])
        assert await bus.check(60.0)
    path = tmp_path / "log.sqlite"
    data = bytearray(path.read_bytes())
    data[30 * PAGE_BYTES : 31 * PAGE_BYTES] = b"\xff" * PAGE_BYTES
    path.write_bytes(data)
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        with pytest.raises(UnreadableLog, match=r"log\.sqlite"):
            await bus.check(60.0)


async def test_a_check_that_takes_too_long_says_that_it_did_not_see_all(tmp_path: Path) -> None:
    """A log of gibibytes must not keep `doctor` waiting; what was not looked at is not called good."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [b"x" * 100] * 10_000)
        assert await bus.check(-1.0) is False
        assert await bus.check(60.0) is True


@pytest.mark.parametrize("version", [0, 2])
async def test_a_log_of_another_format_is_left_alone(tmp_path: Path, version: int) -> None:
    """A database of other tables, or of a newer version, is not written into."""
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite")) as other:
        other.execute("CREATE TABLE log (something TEXT)")
        other.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(UnreadableLog, match=f"format is {version}"):
        await opened(tmp_path)


def test_a_connection_is_set_as_the_log_promises(tmp_path: Path) -> None:
    """Every commit is synced, in pages of our size, and the write-ahead file is brought back and cut."""
    log = LogFile(tmp_path, "file:///log")
    names = ("journal_mode", "synchronous", "page_size", "wal_autocheckpoint", "journal_size_limit")
    found = [log._db.pragma(name) for name in names]
    log.close()
    assert found == ["wal", 2, PAGE_BYTES, CHECKPOINT_PAGES, WAL_BYTES_KEPT]


async def test_the_write_ahead_log_stays_small_while_readers_live(tmp_path: Path) -> None:
    """With readers at work all the time, checkpoints bring it back: it is far smaller than what went through it."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus, EmbeddedBus(tmp_path, SystemClock()) as other:
        seen = 0

        async def follow(reader: EmbeddedBus) -> None:
            nonlocal seen
            async with reader.subscribe([Topic.GPU], Latest()) as subscription:
                async for records in subscription:
                    seen += len(records)

        readers = [asyncio.ensure_future(follow(reader)) for reader in (bus, other, other)]
        largest = 0
        for _ in range(100):
            await bus.publish(Topic.GPU, [bytes(_MIB // 2)])
            largest = max(largest, (tmp_path / "log.sqlite-wal").stat().st_size)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    assert seen > 0
    assert largest < 16 * _MIB


async def test_the_file_stays_within_the_bound_while_it_is_written(tmp_path: Path) -> None:
    """Space that retention frees is used again."""
    clock = ManualClock()
    limits = {Topic.GPU: TopicLimit(4 * _MIB, 1e9)}
    async with EmbeddedBus(tmp_path, clock, limits) as bus:
        for _ in range(200):
            await bus.publish(Topic.GPU, [bytes(_MIB // 4)])
            clock.advance(6.0)
    assert (tmp_path / "log.sqlite").stat().st_size < 8 * _MIB


def test_a_read_of_several_topics_walks_over_no_other_records(tmp_path: Path) -> None:
    """Each topic is read through its index and merged in order: nothing behind the cursor is sorted."""
    log = LogFile(tmp_path, tmp_path.as_uri())
    log.create()
    plan: list[str] = []
    query, values = log.reading([Topic.GPU, Topic.TRAIN, Topic.FINDINGS], 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    log.close()
    assert len([step for step in plan if "USING INDEX log_topic (topic=? AND rowid>?)" in step]) == 3
    assert not [step for step in plan if "TEMP B-TREE" in step or "SCAN" in step]


def test_every_topic_has_a_bound() -> None:
    """No topic may fill the disk."""
    assert set(DEFAULT_LIMITS) == set(Topic)


def test_the_sqlite_that_carries_the_log_is_a_current_one() -> None:
    """Older ones have a bug when several processes reset the write-ahead log."""
    assert tuple(int(part) for part in sqlite_version().split(".")) >= (3, 51, 3)


@pytest.mark.parametrize("url", ["", "amqp://host:5672", "file://elsewhere/folder", "file:", "/a/path", "sqlite:///x"])
def test_a_bus_url_of_no_known_kind_is_refused(url: str) -> None:
    """The message shows the URL and what is understood."""
    with pytest.raises(UnknownBus, match="file:///FOLDER") as refused:
        open_bus(url, ManualClock())
    assert repr(url) in str(refused.value)


@pytest.mark.parametrize("offset", [-1, 2**63])
async def test_an_offset_that_cannot_be_is_not_committed(tmp_path: Path, offset: int) -> None:
    """The caller is told, and the writer goes on."""
    async with EmbeddedBus(tmp_path, SystemClock()) as bus:
        with pytest.raises(ValueError, match="expected offsets from 0"):
            await bus.commit("group", {Topic.TRAIN: {0: offset}})
        await bus.commit("group", {Topic.TRAIN: {0: 1}})


class BrokenClock(ManualClock):
    """A clock that fails: it stands for any fault of ours inside the writer's thread."""

    def now(self) -> float:
        """Fail."""
        raise RuntimeError("the clock is broken")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_fault_of_the_writer_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Those who wait and those who come later hear that it has failed, and why; closing does not hang."""
    async with EmbeddedBus(tmp_path, BrokenClock()) as bus:
        for _ in range(2):
            answers = await asyncio.gather(
                *(bus.publish(Topic.TRAIN, [b"payload"]) for _ in range(20)),
                bus.commit("group", {Topic.TRAIN: {0: 1}}),
                return_exceptions=True,
            )
            assert {type(answer) for answer in answers} == {BusUnavailable}
            assert "the clock is broken" in str(answers[0])


async def test_processes_that_open_and_close_one_log_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The files beside the log come and go; whoever opens it meanwhile notices nothing."""

    async def often(name: str) -> None:
        for number in range(15):
            async with EmbeddedBus(tmp_path, SystemClock()) as bus:
                await bus.publish(Topic.TRAIN, [f"{name}:{number}".encode()])

    await asyncio.gather(*(often(str(name)) for name in range(4)))
    async with EmbeddedBus(tmp_path, SystemClock()) as bus, bus.subscribe([Topic.TRAIN], Earliest()) as subscription:
        assert len(await anext(aiter(subscription))) == 60


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(lambda log: log.earliest(Topic.FINDINGS), id="earliest"),
        pytest.param(lambda log: log.at_time(Topic.FINDINGS, 1.0), id="at-time"),
    ],
)
def test_what_is_appended_while_a_reader_looks_for_its_start_is_not_passed_over(
    tmp_path: Path, question: Callable[[LogFile], int]
) -> None:
    """The first record of an empty topic came between the reader's two statements, and nobody ever read it."""
    writer = LogFile(tmp_path, "file:///log")
    writer.create()

    class Interrupted(LogFile):
        statements = 0

        def _number(self, query: str, *values: object) -> int | None:
            found = super()._number(query, *values)
            self.statements += 1
            if self.statements == 1:
                writer.append([(Topic.FINDINGS, [b"first"])], 2.0)
            return found

    reader = Interrupted(tmp_path, "file:///log")
    records, _ = reader.read([Topic.FINDINGS], question(reader))
    assert [record.payload for record in records] == [b"first"]
    reader.close()
    writer.close()
