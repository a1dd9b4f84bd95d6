"""What is in the spool is there after a kill, is bounded, and whatever happens to it is counted."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from collectors.errors import SpoolTaken
from collectors.moment import STEP_SECONDS_MIN, Moment, brought_to
from collectors.spool import SPOOL_AGE_SECONDS, SPOOL_BYTES_MIN, Entry, Spool, SpoolConfig
from telemetry_bus import FrameMaker, Topic, decode, encode
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.ledger import HOLES_MAX
from telemetry_bus.runtime.clock import ManualClock
from tests.collectors.outlets import gpu_frame, spooling

BOOT = uuid.UUID(int=7)
HOUR = 3600.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands."""
    return ManualClock()


@asynccontextmanager
async def opened(folder: Path, clock: ManualClock, size: int = SPOOL_BYTES_MIN) -> AsyncIterator[Spool]:
    """A small spool of one start of the machine."""
    async with spooling(folder, clock, bytes=size, boot=BOOT) as spool:
        yield spool


async def keep(spool: Spool, topic: Topic, payload: bytes, rows: int = 1, simulated: bool = False) -> int:
    """Append what is stamped now."""
    return await spool.append(topic, payload, key="node-1", rows=rows, simulated=simulated, stamped=spool.moment())


async def everything(spool: Spool) -> list[Entry]:
    """Take all entries out, batch by batch."""
    found: list[Entry] = []
    while entries := await spool.read():
        found += entries
        await spool.settle(entries)
    return found


async def test_what_was_appended_comes_back_in_order_with_when_it_was_stamped(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Topics keep the one order in which they came, and each entry its two clocks."""
    async with opened(tmp_path, clock) as spool:
        for number, topic in enumerate((Topic.GPU, Topic.TRAIN, Topic.EVENTS, Topic.GPU)):
            await keep(spool, topic, b"%d" % number, rows=number)
            clock.advance(1.0)
        assert (spool.depth.frames, spool.depth.oldest_seconds) == (4, 4.0)
        found = await everything(spool)
        assert (spool.depth.frames, spool.depth.bytes, spool.depth.oldest_seconds) == (0, 0, None)
    assert [(entry.payload, entry.topic, entry.rows) for entry in found] == [
        (b"0", Topic.GPU, 0), (b"1", Topic.TRAIN, 1), (b"2", Topic.EVENTS, 2), (b"3", Topic.GPU, 3)
    ]  # fmt: skip
    assert [entry.stamped.monotonic for entry in found] == [0.0, 1.0, 2.0, 3.0]


async def test_a_position_is_kept_and_what_was_not_settled_comes_again(tmp_path: Path, clock: ManualClock) -> None:
    """A process that starts anew goes on where the last one had settled, and knows how much waits."""
    async with opened(tmp_path, clock) as spool:
        for number in range(600):
            await keep(spool, Topic.GPU, b"%d" % number)
        await spool.settle(await spool.read())
        await spool.read()
        depth = spool.depth
    async with opened(tmp_path, clock) as again:
        assert again.depth == depth
        assert [entry.payload for entry in await everything(again)] == [b"%d" % n for n in range(256, 600)]
    async with opened(tmp_path, clock) as empty:
        assert await empty.read() == []


async def test_at_its_bound_the_oldest_of_that_topic_go_and_are_counted(tmp_path: Path, clock: ManualClock) -> None:
    """A flood of GPU rows takes no event, and what went is known to the row."""
    async with opened(tmp_path, clock) as spool:
        await keep(spool, Topic.EVENTS, b"an event")
        for _ in range(100):
            await keep(spool, Topic.GPU, bytes(100_000), rows=8, simulated=True)
        depth = spool.depth
        assert spool.frames_dropped == 101 - depth.frames > 0
        assert spool.rows_dropped == spool.take_dropped()[True] == 8 * spool.frames_dropped
        assert spool.take_dropped() == {}
        assert depth.bytes <= SPOOL_BYTES_MIN * 0.25 + 100
        found = await everything(spool)
    assert found[0].payload == b"an event"
    assert len(found) == depth.frames
    async with opened(tmp_path, clock) as again:
        assert again.depth.frames == 0


async def test_what_is_too_old_goes_and_is_counted(tmp_path: Path, clock: ManualClock) -> None:
    """The bound in age takes what nobody would wait for any more."""
    async with opened(tmp_path, clock) as spool:
        await keep(spool, Topic.TRAIN, b"old", rows=3)
        clock.advance(SPOOL_AGE_SECONDS - 1.0)
        await keep(spool, Topic.TRAIN, b"young")
        await spool.expire()
        assert spool.frames_dropped == 0
        clock.advance(2.0)
        await spool.expire()
        assert (spool.frames_dropped, spool.rows_dropped) == (1, 3)
        assert [entry.payload for entry in await everything(spool)] == [b"young"]


@pytest.mark.parametrize("step", [-100 * HOUR, 100 * HOUR])
async def test_setting_the_clock_ages_nothing(tmp_path: Path, clock: ManualClock, step: float) -> None:
    """Age is what has passed, whatever the wall clock shows, in this process and in the next one."""
    async with opened(tmp_path, clock) as spool:
        await keep(spool, Topic.GPU, b"x")
        clock.step(step)
        clock.advance(60.0)
        await spool.expire()
        assert spool.depth.oldest_seconds == pytest.approx(60.0)
    clock.step(step)
    async with opened(tmp_path, clock) as again:
        clock.advance(60.0)
        await again.expire()
        assert again.depth.oldest_seconds == pytest.approx(120.0)
        assert again.frames_dropped == 0


async def test_another_start_of_the_machine_goes_on_with_what_the_last_one_left(tmp_path: Path) -> None:
    """Its monotonic clock begins at zero; the time that the machine was off does not count as age."""
    before, after = ManualClock(), ManualClock()
    before.advance(10 * HOUR)
    async with opened(tmp_path, before) as spool:
        await keep(spool, Topic.GPU, b"x")
    after.advance(30.0)
    async with spooling(tmp_path, after, boot=uuid.UUID(int=8)) as again:
        assert again.depth.oldest_seconds == pytest.approx(30.0)
        assert [entry.stamped.boot for entry in await everything(again)] == [BOOT]


async def test_two_collectors_on_one_spool_are_refused(tmp_path: Path, clock: ManualClock) -> None:
    """The second is told what to do, and the first goes on."""
    async with opened(tmp_path, clock) as spool:
        with pytest.raises(SpoolTaken, match=r"in use by another collector.*spool\.folder"):
            await opened(tmp_path, clock).__aenter__()
        await keep(spool, Topic.GPU, b"x")
    async with opened(tmp_path, clock) as again:
        assert again.depth.frames == 1


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "of another kind"])
async def test_a_spool_that_is_damaged_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, clock: ManualClock, damage: str
) -> None:
    """A collector always starts: what a damaged file held is lost, said, and kept for a person to look at."""
    async with opened(tmp_path, clock) as spool:
        for _ in range(50):
            await keep(spool, Topic.GPU, bytes(5_000))
    file = tmp_path / "log.sqlite"
    data = file.read_bytes()
    file.write_bytes({"cut short": data[:700], "overwritten": b"\0" * len(data), "of another kind": b"hello"}[damage])
    async with opened(tmp_path, clock) as again:
        assert again.depth.frames == 0
        await keep(again, Topic.GPU, b"after")
        assert [entry.payload for entry in await everything(again)] == [b"after"]
    assert (tmp_path / "damaged" / "log.sqlite").exists()


async def test_a_spool_that_is_deleted_while_it_is_used_is_made_anew(tmp_path: Path, clock: ManualClock) -> None:
    """What was in it is counted as dropped; the frame that found out is kept."""
    async with opened(tmp_path, clock) as spool:
        for _ in range(5):
            await keep(spool, Topic.GPU, b"x", rows=2)
        for name in ("log.sqlite", "log.sqlite-wal", "log.sqlite-shm"):
            (tmp_path / name).unlink()
        await keep(spool, Topic.GPU, b"after")
        assert (spool.frames_dropped, spool.rows_dropped, spool.depth.frames) == (5, 10, 1)
        assert [entry.payload for entry in await everything(spool)] == [b"after"]


async def test_pages_damaged_while_it_is_used_cost_what_was_in_it_and_no_more(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Reading finds the damage; the rest is counted, and the spool goes on."""
    async with opened(tmp_path, clock) as spool:
        for _ in range(200):
            await keep(spool, Topic.GPU, bytes(5_000))
    file = tmp_path / "log.sqlite"
    data = bytearray(file.read_bytes())
    data[8192 : len(data) - 4096] = b"\xff" * (len(data) - 12288)
    file.write_bytes(data)
    async with opened(tmp_path, clock) as again:
        await everything(again)
        await keep(again, Topic.GPU, b"after")
        assert (await everything(again))[-1].payload == b"after"


class FullDisk:
    """Stands where the spool's log is, on a disk without room."""

    url = "file:///full"

    async def publish(self, topic: Topic, payloads: list[bytes]) -> list[int]:
        """Say what the log says then."""
        del topic, payloads
        raise BusUnavailable(self.url, "append", OSError(28, "No space left on device"))


async def test_a_full_disk_is_told_and_nothing_is_counted_that_is_not_there(tmp_path: Path, clock: ManualClock) -> None:
    """Who appends is told to try again; when there is room, it works."""
    async with opened(tmp_path, clock) as spool:
        log, spool._bus = spool._bus, FullDisk()  # type: ignore[assignment]
        with pytest.raises(BusUnavailable, match="No space left"):
            await keep(spool, Topic.GPU, b"x")
        assert spool.depth.frames == 0
        spool._bus = log
        await keep(spool, Topic.GPU, b"x")
        assert spool.depth.frames == 1


async def test_what_no_detector_has_seen_is_known_after_a_kill(tmp_path: Path, clock: ManualClock) -> None:
    """What was looked at is not looked at again."""
    async with opened(tmp_path, clock) as spool:
        for number in range(4):
            offset = await keep(spool, Topic.TRAIN, b"%d" % number)
            if number == 1:
                spool.looked_at(Topic.TRAIN, offset)
                await spool.remember_looked()
    async with opened(tmp_path, clock) as again:
        unseen = await again.not_looked_at((Topic.TRAIN, Topic.EVENTS))
        assert [entry.payload for entry in unseen] == [b"2", b"3"]


def test_the_bound_in_age_fits_what_readers_remember() -> None:
    """A backlog of the greatest age, a frame a second, still finds its holes open at the readers."""
    assert 4 * HOUR < SPOOL_AGE_SECONDS < HOLES_MAX


def test_a_spool_too_small_to_be_one_is_refused(tmp_path: Path) -> None:
    """The message says what is allowed."""
    with pytest.raises(ValueError, match="expected at least"):
        SpoolConfig(tmp_path, bytes=1000)


@pytest.mark.parametrize("step", [0.0, -7 * HOUR, 7 * HOUR], ids=["not set", "set back", "set forward"])
def test_rows_follow_a_clock_that_was_set(clock: ManualClock, step: float) -> None:
    """What waited is sent on the clock as it is now: times move by the step, and `sent` is now."""
    frame = gpu_frame(FrameMaker("node-1/gpu"), clock.now() - 2.0)
    frame = frame.sent_at(clock.now())
    then = Moment(BOOT, clock.now(), clock.monotonic())
    clock.step(step)
    clock.advance(600.0)
    now = Moment(BOOT, clock.now(), clock.monotonic())
    moved = brought_to(frame, then, now)
    assert moved.manifest[0].sent == pytest.approx(clock.now(), abs=1e-3)
    assert moved.times()[0] == pytest.approx(clock.now() - 602.0, abs=1e-3)
    assert (moved.manifest[0].source, moved.manifest[0].seq) == ("node-1/gpu", 0)


def test_a_run_of_another_clock_keeps_its_difference(clock: ManualClock) -> None:
    """A training process in a container whose clock is an hour off is an hour off when its rows are sent, too."""
    frame = gpu_frame(FrameMaker("node-1/gpu"), clock.now() + HOUR)
    then = Moment(BOOT, clock.now(), clock.monotonic())
    clock.advance(600.0)
    now = Moment(BOOT, clock.now(), clock.monotonic())
    assert brought_to(frame, then, now).manifest[0].sent == pytest.approx(clock.now() + HOUR, abs=1e-3)


def test_clocks_read_one_after_the_other_are_no_step(clock: ManualClock) -> None:
    """A reading that was interrupted between two clocks moves nothing."""
    then = Moment(BOOT, clock.now() + 0.9 * STEP_SECONDS_MIN, clock.monotonic())
    clock.advance(5.0)
    assert Moment(BOOT, clock.now(), clock.monotonic()).passed_since(then) == (5.0, 0.0)


def test_after_a_start_of_the_machine_only_the_wall_clock_tells(clock: ManualClock) -> None:
    """No step can be known then, and time does not run backwards."""
    then, now = clock.now(), Moment(uuid.UUID(int=8), clock.now(), 3.0)
    assert now.passed_since(Moment(BOOT, then - 60.0, 5000.0)) == (60.0, 0.0)
    assert now.passed_since(Moment(BOOT, then + 60.0, 5000.0)) == (0.0, 0.0)


@pytest.mark.parametrize("after", [1, 37, 300])
async def test_what_append_has_returned_survives_a_kill(tmp_path: Path, clock: ManualClock, after: int) -> None:
    """A real process is killed while it appends: every frame that it said is durable is there, once, as it was."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.collectors.spool_process", str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    said = -1
    async with asyncio.timeout(30):
        while said < after:
            said = int(await child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    async for line in child.stdout:
        said = int(line) if line.endswith(b"\n") else said
    assert await child.wait() == -signal.SIGKILL
    async with opened(tmp_path, clock) as spool:
        frames = [decode(entry.payload) for entry in await everything(spool)]
    seqs = [run.seq for frame in frames for run in frame.manifest]
    assert seqs == list(range(len(seqs)))
    assert len(seqs) > said
    assert len({encode(frame) for frame in frames}) == len(seqs)
