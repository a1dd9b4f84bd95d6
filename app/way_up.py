"""A node's way up, wired: the spool, the detectors that watch while the bus is away, and what sends."""

from collections.abc import Sequence

from app.settings import Settings, SettingsError
from app.telemetry import way_up_metrics
from app.wiring import Wiring
from collectors.errors import SpoolTaken
from collectors.ripcord import Ripcord
from collectors.spool import SpoolConfig
from collectors.upward import Upward
from detectors.detector import Detector, ReaderHealth
from detectors.nonfinite import NonFinite
from telemetry_bus.errors import InaccessibleFolder, UnsuitableFolder
from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame
from telemetry_bus.topics import Topic


async def way_up(wiring: Wiring, *, simulated: bool) -> Upward:
    """Open it on the process's stack, before whoever sends by it."""
    settings = wiring.settings
    spool = spool_config(settings).build(wiring.clock)
    try:
        await wiring.stack.enter_async_context(spool)
    except (SpoolTaken, InaccessibleFolder, UnsuitableFolder) as error:
        raise SettingsError(f"spool.folder: {error}") from error
    watching = [NodeDetector(NonFinite().build())]
    ripcord = Ripcord(watching, wiring.outlet.report, spool.moment, node=settings.node, folder=settings.spool_path)
    await wiring.stack.enter_async_context(ripcord)
    upward = Upward(
        wiring.outlet, spool, wiring.clock, node=settings.node, region=settings.region, ripcord=ripcord,
        simulated=simulated,
    )  # fmt: skip
    await wiring.stack.enter_async_context(upward)
    wiring.gauges.add(lambda: way_up_metrics(upward, ripcord))
    return upward


def spool_config(settings: Settings) -> SpoolConfig:
    """The spool as the settings want it."""
    return SpoolConfig(settings.spool_path, settings.spool.bytes, settings.spool.age_seconds)


class NodeDetector:
    """A detector on one node, where there is no reader whose health could be told."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def topics(self) -> frozenset[Topic]:
        """The topics whose frames it wants."""
        return self._detector.topics

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Look at rows that this node has made."""
        return self._detector.observe(frame)

    def tick(self, now: float) -> Sequence[Finding]:
        """Let time pass."""
        return self._detector.tick(now, ReaderHealth())

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before this process started."""
        self._detector.remember(finding, now)
