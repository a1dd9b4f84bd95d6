"""What an outage has held back holds up no detector, whatever kinds of rows lie in it side by side."""

import asyncio
import contextlib
from pathlib import Path

from detectors import detector_config
from detectors.agents import DetectorService
from detectors.position import GROUP
from telemetry_bus import FrameMaker, Topic, encode
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.runtime.clock import ManualClock

COMMIT_SECONDS = 0.01
GUARD_SECONDS = 40.0
"""A guard against a test that hangs; no test waits for it to pass."""


async def test_a_backlog_of_several_schemas_is_read_on(tmp_path: Path) -> None:
    """Readings and events of one node come back as neighbours in one topic, and in one batch of the bus."""
    clock = ManualClock()
    now = clock.now()
    gpus, events = FrameMaker("n1/gpu"), FrameMaker("n1/spool")
    frames = [
        gpus.make("gpu/1", {"time": [now], "node": ["n1"], "gpu": [0], "simulated": [True]}, now),
        events.make("event/1", {"time": [now], "kind": ["spool"], "node": ["n1"], "simulated": [True]}, now),
    ]
    async with EmbeddedBus(tmp_path / "bus", clock) as bus, asyncio.timeout(GUARD_SECONDS):
        await bus.publish(Topic.BACKLOG, [encode(frame) for frame in frames])
        (end,) = (await bus.ends(Topic.BACKLOG)).values()
        letters = DeadLetters(bus, clock, "node/detect.dead")
        nonfinite = detector_config("nonfinite").build()
        service = DetectorService(bus, [nonfinite], clock, letters, "node/detect", COMMIT_SECONDS)
        running = asyncio.create_task(service.run())
        try:
            while not running.done() and (await bus.committed(GROUP)).get(Topic.BACKLOG, {}).get(0) != end:
                await asyncio.sleep(0.002)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    assert service.stats.frames == len(frames)
