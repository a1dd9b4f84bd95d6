"""The table of detectors: registered name to configuration class."""

from collections.abc import Mapping
from typing import Any

from detectors.busy_without_rows import BusyWithoutRows
from detectors.clock_offset import ClockOffset
from detectors.detector import DetectorConfig
from detectors.errors import UnknownDetector
from detectors.lag import Lag
from detectors.loss_spike import LossSpike
from detectors.missing_frames import MissingFrames
from detectors.nonfinite import NonFinite
from detectors.refused_frames import RefusedFrames
from detectors.silent_region import SilentRegion
from detectors.silent_source import SilentSource
from detectors.stall import Stall

DETECTORS: dict[str, type[DetectorConfig]] = {
    "nonfinite": NonFinite,
    "loss_spike": LossSpike,
    "stall": Stall,
    "busy_without_rows": BusyWithoutRows,
    "silent_source": SilentSource,
    "silent_region": SilentRegion,
    "missing_frames": MissingFrames,
    "lag": Lag,
    "clock_offset": ClockOffset,
    "refused_frames": RefusedFrames,
}
"""Name, which is also the file's, and what configures it. The first three live on a run's own rows."""

RUN_DETECTORS = ("nonfinite", "loss_spike", "stall")
"""What a recorded run can be judged by: a file of a run has no GPUs and no reader."""


def all_detectors(settings: Mapping[str, Mapping[str, Any]]) -> tuple[DetectorConfig, ...]:
    """Every detector, with its ``settings`` by its name where they are not the defaults."""
    return tuple(config(**settings.get(name, {})) for name, config in DETECTORS.items())


def run_detectors() -> tuple[DetectorConfig, ...]:
    """Those of :data:`RUN_DETECTORS`, with their default settings."""
    return tuple(DETECTORS[name]() for name in RUN_DETECTORS)


def detector_config(name: str, **settings: Any) -> DetectorConfig:
    """The configuration of the detector ``name``. :class:`UnknownDetector` if there is none; ``TypeError`` for an
    unknown setting."""
    if name not in DETECTORS:
        raise UnknownDetector(name, tuple(DETECTORS))
    return DETECTORS[name](**settings)
