"""lag: Nantucket reads its own bus too slowly, so that everything it says is late."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Latch
from detectors.watching import firing, names, resolved
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class Lag:
    """Settings: warning_seconds and critical_seconds of lag, hold_seconds for which it must last, clear_seconds until
    it is taken back."""

    warning_seconds: float = 5.0
    critical_seconds: float = 30.0
    hold_seconds: float = 10.0
    clear_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("warning_seconds", "critical_seconds", "hold_seconds", "clear_seconds"):
            if not getattr(self, name) > 0:
                raise WrongSetting("lag", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return LagDetector(self)


class LagDetector:
    """See the module's text."""

    name = "lag"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: Lag) -> None:
        self.config = config
        self._latches = {
            Severity.WARNING: (config.warning_seconds, Latch(config.hold_seconds, config.clear_seconds)),
            Severity.CRITICAL: (config.critical_seconds, Latch(config.hold_seconds, config.clear_seconds)),
        }

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Compare the lag of each topic with its limits."""
        found = []
        for severity, (limit, latch) in self._latches.items():
            late = [topic.value for topic, seconds in health.lag_seconds.items() if seconds > limit]
            raised, over = latch.update(now, late)
            for group in raised:
                worst = max(health.lag_seconds.get(Topic(name), 0.0) for name in group.names)
                title = f"Nantucket is {worst:.3g} s behind on {names(group)}"
                message = f"Findings and pages come that much late; {limit:g} s are the limit. Give it more processor."
                evidence = {"lag_seconds": worst, "limit_seconds": limit}
                found.append(firing(FindingKind.LAG, severity, group, now, title, message, evidence))
            for group in over:
                title = f"lag on {names(group)} is below {limit:g} s again"
                found.append(resolved(FindingKind.LAG, severity, group, now, title))
        return found
