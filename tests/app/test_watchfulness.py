"""The heartbeat speaks for the detectors too."""

from pathlib import Path

from app.roles.alert import IDLE_SECONDS_MAX, DetectorsAtWork
from detectors.position import GROUP
from telemetry_bus import Topic, open_bus
from telemetry_bus.runtime.clock import ManualClock


async def test_detectors_that_stand_still_are_blindness(tmp_path: Path) -> None:
    """While the detectors' position among the ticks does not move, nobody would find anything to page about."""
    clock = ManualClock()
    async with open_bus(tmp_path.as_uri(), clock) as bus:
        at_work = DetectorsAtWork(bus, clock)
        assert await at_work.blindness() is None, "a start is given its time"
        clock.advance(IDLE_SECONDS_MAX + 1)
        assert "dealt with nothing" in str(await at_work.blindness())
        await bus.commit(GROUP, {Topic.TICKS: {0: 5}})
        assert await at_work.blindness() is None
        clock.advance(IDLE_SECONDS_MAX / 2)
        await bus.commit(GROUP, {Topic.TICKS: {0: 6}})
        assert await at_work.blindness() is None
        clock.advance(IDLE_SECONDS_MAX + 1)
        assert "dealt with nothing" in str(await at_work.blindness())
