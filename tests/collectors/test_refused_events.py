"""What a node tells of itself may be refused for good, and its rows go up all the same."""

from collections.abc import Sequence
from pathlib import Path

from telemetry_bus import FrameMaker, Topic
from telemetry_bus.errors import FrameFault, FrameRefused
from tests.collectors.outlets import FarEnd, going_up, gpu_frame
from tests.collectors.virtual_time import VirtualTime


class NoEvents(FarEnd):
    """A far end that takes rows and no event: a gateway of another version, say."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Take frames, or do not."""
        if topic is Topic.EVENTS and not self.away:
            raise FrameRefused(self.url, FrameFault.UNKNOWN_SCHEMA, "no event")
        await super().publish(topic, payloads, key)


async def test_a_far_end_that_refuses_events_takes_the_rows_of_an_outage(tmp_path: Path) -> None:
    """A refusal is an answer: the far end is there, and nothing of the way up ends."""
    time, far = VirtualTime(), NoEvents()
    maker = FrameMaker("node-1/gpu")
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:
        far.away = True
        for _ in range(100):
            await upward.publish(Topic.GPU, gpu_frame(maker, time.now()))
            await time.drive_for(1.0)
        far.away = False
        upward.spool.dropped[False] += 1
        await time.drive(lambda: not upward.away and not upward.depth.frames)
        await time.drive_for(15.0)
        await upward.publish(Topic.GPU, gpu_frame(maker, time.now()))
    assert sorted(far.seqs(Topic.GPU) + far.seqs(Topic.BACKLOG)) == list(range(101))
