"""Detectors: plain classes without I/O that are given frames and ticks, and return findings."""

from detectors.busy_without_rows import BusyWithoutRows
from detectors.clock_offset import ClockOffset
from detectors.detector import Detector, DetectorConfig, Holes, ReaderHealth, reader_health
from detectors.errors import DetectorError, UnknownDetector, WrongSetting
from detectors.lag import Lag
from detectors.loss_spike import LossSpike
from detectors.missing_frames import MissingFrames
from detectors.nonfinite import NonFinite
from detectors.refused_frames import RefusedFrames
from detectors.registry import DETECTORS, all_detectors, detector_config, run_detectors
from detectors.silent_region import SilentRegion
from detectors.silent_source import SilentSource
from detectors.stall import Stall

__all__ = [
    "DETECTORS",
    "BusyWithoutRows",
    "ClockOffset",
    "Detector",
    "DetectorConfig",
    "DetectorError",
    "Holes",
    "Lag",
    "LossSpike",
    "MissingFrames",
    "NonFinite",
    "ReaderHealth",
    "RefusedFrames",
    "SilentRegion",
    "SilentSource",
    "Stall",
    "UnknownDetector",
    "WrongSetting",
    "all_detectors",
    "detector_config",
    "reader_health",
    "run_detectors",
]
