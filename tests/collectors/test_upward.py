"""Live first, then the backlog: what a node sends is durable somewhere when `publish` returns, whatever is away."""

import asyncio
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collectors.spool import Spool
from collectors.spool_sender import BACKLOG_BYTES_PER_SECOND_MAX
from collectors.upward import CATCH_UP_SECONDS_MAX, LIVE_SECONDS_MAX, PROBE_MAX_SECONDS, Upward
from telemetry_bus import FrameError, FrameMaker, Intake, Record, Topic, encode, merge
from telemetry_bus.errors import BusUnavailable, OutletFull
from tests.collectors.outlets import FarEnd, going_up, gpu_frame, spooling, train_frame
from tests.collectors.virtual_time import VirtualTime

HOUR = 3600.0


class Node:
    """A node that makes a frame of one GPU a second."""

    def __init__(self, upward: Upward, time: VirtualTime) -> None:
        self.upward, self.time, self.maker = upward, time, FrameMaker("node-1/gpu")

    async def sends(self, frames: int = 1) -> None:
        """Make and publish, a frame a second."""
        for _ in range(frames):
            await self.upward.publish(Topic.GPU, gpu_frame(self.maker, self.time.now()))
            await self.time.drive_for(1.0)


async def test_while_the_far_end_is_there_nothing_touches_the_spool(tmp_path: Path) -> None:
    """The ordinary day: frames go up, in order, in their own topic."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        await Node(upward, time).sends(5)
        assert upward.counters.frames_spooled == upward.counters.outages == 0
    assert far.seqs(Topic.GPU) == list(range(5))


async def test_a_long_outage_loses_nothing_and_live_goes_first(tmp_path: Path) -> None:
    """Ten minutes away: the first new frame is live, the spool follows behind it, and each frame is visible once."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        await node.sends(3)
        far.away = True
        await node.sends(600)
        assert upward.depth.frames == 600 + 1  # and the event that it began
        far.away = False
        await time.drive(lambda: not upward.away)
        await node.sends(20)
        await time.drive(lambda: not upward.depth.frames)
        assert upward.counters.away_seconds == pytest.approx(600.0, abs=5.0)
    ledger = far.ledger()
    assert (ledger.outstanding, ledger.duplicate_total) == (0, 0)
    assert far.seqs(Topic.GPU) == [0, 1, 2, *range(603, 623)]
    assert far.seqs(Topic.BACKLOG) == list(range(3, 603))
    assert len(far.frames(Topic.BACKLOG)) < 20  # merged, each with the manifest that it was made with


async def test_a_short_outage_is_caught_up_with_in_order_as_live_rows(tmp_path: Path) -> None:
    """A broker that is started again leaves no hole in a detector's view, and nothing is out of order."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(int(CATCH_UP_SECONDS_MAX / 2))
        far.away = False
        await node.sends(10)
        assert not upward.away
    assert far.frames(Topic.BACKLOG) == []
    assert far.seqs(Topic.GPU) == list(range(len(far.seqs(Topic.GPU)))) == list(range(40))
    intake = Intake()
    for frame in far.frames(Topic.GPU):
        record = Record(Topic.GPU, 0, 0, frame.manifest[0].sent, encode(frame))
        assert intake.take(record).refusals == ()
    assert intake.clock_offsets == {}


async def test_a_far_end_that_hangs_is_away_after_its_time(tmp_path: Path) -> None:
    """No answer is an answer: that frame is in the spool when its time is over, the next one at once."""
    time, far = VirtualTime(), FarEnd()
    far.answers.clear()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        loop, maker = asyncio.get_running_loop(), FrameMaker("node-1/gpu")
        began = loop.time()
        await upward.publish(Topic.GPU, gpu_frame(maker, time.now()))
        first = loop.time() - began
        await upward.publish(Topic.GPU, gpu_frame(maker, time.now()))
        assert first > LIVE_SECONDS_MAX * 0.9
        assert loop.time() - began - first < LIVE_SECONDS_MAX
        assert upward.away
        assert upward.depth.frames >= 2
        far.answers.set()


async def test_the_far_end_is_found_within_its_bound_and_not_hammered(tmp_path: Path) -> None:
    """A probe every second or two, at a moment of its own."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        far.away = True
        await Node(upward, time).sends(100)
        assert 50 <= upward.counters.probes <= 120
        far.away = False
        back = time.monotonic()
        await time.drive(lambda: not upward.away)
        assert time.monotonic() - back <= PROBE_MAX_SECONDS


async def test_the_spool_of_a_killed_process_is_sent_by_the_next(tmp_path: Path) -> None:
    """What the one before had made durable goes up, under its boot and its numbers."""
    time, far = VirtualTime(), FarEnd()
    maker = FrameMaker("node-1/gpu")
    far.away = True
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        for _ in range(10):
            await upward.publish(Topic.GPU, gpu_frame(maker, time.now()))
    far.away = False
    async with going_up(tmp_path, far, time, sleep=time.sleep) as again:
        await time.drive(lambda: not again.depth.frames)
        assert not again.away
    (backlog,) = far.frames(Topic.BACKLOG)
    assert [(run.boot, run.seq) for run in backlog.manifest] == [(maker.boot, seq) for seq in range(10)]


async def test_a_drain_that_is_interrupted_publishes_again_and_is_visible_once(tmp_path: Path) -> None:
    """The far end goes away in the middle: what was sent before the position was committed comes twice, and counts
    once."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        far.away = True
        node = Node(upward, time)
        for second in range(200):
            await upward.publish(Topic.TRAIN, train_frame(FrameMaker(f"job-{second % 5}/1/0/train"), time.now(), 1))
        await node.sends(70)
        far.away, far.fails_after = False, 3
        await time.drive(lambda: far.away)
        far.fails_after, far.away = None, False
        await time.drive(lambda: not upward.depth.frames)
    ledger = far.ledger()
    assert ledger.duplicate_total > 0
    assert ledger.outstanding == 0
    assert set(far.seqs(Topic.BACKLOG)) == set(range(70))
    assert len({run.boot for frame in far.frames(Topic.BACKLOG) for run in frame.manifest}) == 200 + 1


@pytest.mark.parametrize("step", [-5 * HOUR, 5 * HOUR])
async def test_a_clock_that_is_set_during_the_outage_moves_no_row(tmp_path: Path, step: float) -> None:
    """Rows from before the step arrive on the clock as it is now, in their order and at their distance."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(100)
        time.step(step)
        await node.sends(20)
        far.away = False
        await time.drive(lambda: not upward.depth.frames)
    merged = merge(far.frames(Topic.BACKLOG))
    times = merged.times()
    assert [round(float(b - a), 3) for a, b in pairwise(times)] == [1.0] * 119
    assert time.now() - 130.0 < times[0] < times[-1] <= time.now()
    assert all(abs(run.sent - time.now()) < 10.0 for run in merged.manifest)


async def test_the_backlog_keeps_to_the_pace_that_is_granted(tmp_path: Path) -> None:
    """A hundred kilobytes a second mean that; without a grant the node's own bound holds."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(400)
        far.away, far.pace = False, 20_000.0
        await time.drive(lambda: not upward.away)
        began = time.monotonic()
        await time.drive(lambda: not upward.depth.frames)
        took = time.monotonic() - began
        assert took == pytest.approx(upward.counters.backlog_bytes / far.pace, rel=0.2)
    assert math.isfinite(BACKLOG_BYTES_PER_SECOND_MAX)


async def test_a_pace_of_nothing_waits_until_something_is_granted(tmp_path: Path) -> None:
    """A gateway that grants nothing now is asked again a second later."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(100)
        far.away, far.pace = False, 0.0
        await time.drive(lambda: not upward.away)
        await time.drive_for(30.0)
        assert upward.depth.frames > 0
        far.pace = 1e6
        await time.drive(lambda: not upward.depth.frames)


async def test_a_live_frame_does_not_wait_for_the_backlog(tmp_path: Path) -> None:
    """While the backlog is at a standstill, live frames are durable at once."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(100)
        far.away, far.pace = False, 1.0
        await time.drive(lambda: bool(far.frames(Topic.BACKLOG)))
        before = time.monotonic()
        await upward.publish(Topic.GPU, gpu_frame(node.maker, time.now()))
        assert time.monotonic() == before
        assert far.seqs(Topic.GPU) == [100]
        assert upward.depth.frames > 0


class FullFarEnd(FarEnd):
    """A gateway without room, which says for how long."""

    full = False

    async def publish(self, topic: Topic, payloads: object, key: str = "") -> None:
        """Refuse politely while full."""
        if self.full:
            raise OutletFull(self.url, "no room", 4.0)
        await super().publish(topic, payloads, key)  # type: ignore[arg-type]


async def test_a_gateway_that_is_full_is_not_asked_before_its_time(tmp_path: Path) -> None:
    """Its answer is obeyed: nothing is lost meanwhile, and it is not asked four times a second."""
    time, far = VirtualTime(), FullFarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        far.full = True
        await Node(upward, time).sends(40)
        assert 5 <= upward.counters.probes <= 10
        far.full = False
        await time.drive(lambda: not upward.away)
    assert far.seqs(Topic.GPU) == list(range(40))


async def test_a_frame_that_is_refused_for_ever_costs_itself_alone(tmp_path: Path) -> None:
    """Live, whoever sent it is told; of the backlog it is counted and told, and the others arrive."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        far.away = True
        await node.sends(100)
        far.away, far.refuses = False, {31, 77}
        await time.drive(lambda: not upward.depth.frames)
        assert upward.counters.refused == upward.spool.rows_dropped == 2
        node.maker.seq = 77
        with pytest.raises(FrameError, match="not this one"):
            await upward.publish(Topic.GPU, gpu_frame(node.maker, time.now()))
        await time.drive(lambda: bool(told(far, "rows_dropped")))
    assert far.seqs(Topic.BACKLOG) == [seq for seq in range(100) if seq not in (31, 77)]
    assert sum(detail["rows"] for detail in told(far, "rows_dropped")) == 2


def told(far: FarEnd, kind: str) -> list[dict[str, Any]]:
    """The details of what the spool told of a kind."""
    rows = [row for topic, frame in far.published if frame.schema_id == "event/1" for row in frame.batch.to_pylist()]
    return [json.loads(row["detail"]) for row in rows if row["kind"] == kind]


async def test_the_depth_is_told_from_the_beginning_of_an_outage_to_its_end(tmp_path: Path) -> None:
    """The page can show what waits: when it began, when the far end is back, while it is sent, and when all is."""
    time, far = VirtualTime(), FarEnd()
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        node = Node(upward, time)
        await node.sends()
        far.away = True
        await node.sends(1200)
        far.away, far.pace = False, 10_000.0
        await time.drive(lambda: not upward.depth.frames)
        await time.drive(lambda: told(far, "spool")[-1]["away"] is False and told(far, "spool")[-1]["frames"] == 0)
    depths = told(far, "spool")
    assert (depths[0]["away"], depths[0]["frames"]) == (True, 1201)  # the probe that was answered
    assert {"frames", "bytes", "oldest_seconds", "away"} == depths[0].keys()
    assert any(0 < depth["frames"] < 1200 and depth["away"] is False for depth in depths)
    assert far.ledger().outstanding == 0


class BrokenDisk(Spool):
    """A spool whose disk takes nothing."""

    async def append(self, topic: Topic, payload: bytes, **stamps: object) -> int:
        """Refuse."""
        del topic, payload, stamps
        raise BusUnavailable("file:///spool", "append", OSError(28, "No space left on device"))


async def test_with_bus_and_disk_away_nobody_is_told_durable(tmp_path: Path) -> None:
    """The one promise: what `publish` has returned is somewhere. With nowhere to put it, it raises, and goes on
    later."""
    time, far = VirtualTime(), FarEnd()
    async with spooling(tmp_path, time) as spool:
        disk = BrokenDisk(spool.config, time)
        async with Upward(far, disk, time, node="node-1", sleep=time.sleep) as upward:
            node = Node(upward, time)
            far.away = True
            with pytest.raises(BusUnavailable, match="No space left"):
                await node.sends()
            far.away = False
            await time.drive(lambda: not upward.away)
            await node.sends()
    assert far.seqs(Topic.GPU) == [1]


async def test_concurrent_publishers_lose_nothing_when_the_far_end_flaps(tmp_path: Path) -> None:
    """Away and back every few seconds, three lanes at once: every frame arrives, and no lane is out of order."""
    time, far = VirtualTime(), FarEnd()
    makers = [FrameMaker(f"job-{lane}/1/0/train") for lane in range(3)]
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:

        async def lane(maker: FrameMaker) -> None:
            for step in range(60):
                await upward.publish(Topic.TRAIN, train_frame(maker, time.now(), step))
                await time.sleep(0.2)

        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(lane(maker)) for maker in makers]
            flaps = 0
            while not all(task.done() for task in lanes):
                far.away = not far.away
                flaps += 1
                await time.drive_for(3.0)
        far.away = False
        await time.drive(lambda: not upward.away and not upward.depth.frames)
        assert flaps > 1
    ledger = far.ledger()
    assert (ledger.outstanding, far.frames(Topic.BACKLOG)) == (0, [])
    for maker in makers:
        seqs = [run.seq for frame in far.frames(Topic.TRAIN) for run in frame.manifest if run.source == maker.source]
        assert list(dict.fromkeys(seqs)) == list(range(60))
