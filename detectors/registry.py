"""The table of detectors: registered name to configuration class."""

from detectors.detector import DetectorConfig
from detectors.loss_spike import LossSpike
from detectors.nonfinite import NonFinite

DETECTORS: dict[str, type[DetectorConfig]] = {
    "nonfinite": NonFinite,
    "loss_spike": LossSpike,
}


def default_detectors() -> tuple[DetectorConfig, ...]:
    """Every detector with its default settings."""
    return tuple(config() for config in DETECTORS.values())
