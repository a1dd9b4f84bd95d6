"""The detectors' role."""

from app.telemetry import detector_metrics
from app.wiring import Wiring
from detectors.agents import DetectorService
from detectors.registry import all_detectors
from telemetry_bus.dead_letter import DeadLetters
from telemetry_bus.publisher import tick_for_ever


async def start(wiring: Wiring) -> None:
    """The detectors, and the ticks of the bus's clock."""
    letters = DeadLetters(wiring.bus, wiring.clock, wiring.source("detect.dead"))
    detectors = [config.build() for config in all_detectors(wiring.settings.detect.thresholds)]
    part = wiring.settings.detect.part
    service = DetectorService(wiring.bus, detectors, wiring.clock, letters, wiring.source("detect"), part=part)
    wiring.gauges.add(lambda: detector_metrics(service.stats, letters))
    wiring.tasks.create_task(service.run(), name="detect")
    wiring.awaited.append(service.caught_up)
    wiring.tasks.create_task(tick_for_ever(wiring.bus, wiring.clock, wiring.source("ticks")), name="ticks")
