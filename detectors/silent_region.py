"""silent_region: no frame of a region comes any more, though it sent before.

A region is cut off: its way to the bus, its gateways or its own bus are away. What happens there is not seen, and
nobody is paged for it, until it is back; its collectors keep their frames meanwhile. That is one trouble: while a
region is silent its sources are not called silent one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Group, Latch
from detectors.watching import Unseen, firing, group_of, names, resolved, subject_in
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.ledger import LOST_AFTER_SECONDS
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic

KIND = FindingKind.SILENT_REGION
_ORDER = (Severity.WARNING, Severity.CRITICAL)


@dataclass(frozen=True, slots=True)
class SilentRegion:
    """Settings: silent_seconds until silence is said; page_sources that a region must have had for a page. A smaller
    one (a workstation that was given a region, and is switched off at night) is a warning."""

    silent_seconds: float = 15.0
    page_sources: int = 9

    def __post_init__(self) -> None:
        for name in ("silent_seconds", "page_sources"):
            if not getattr(self, name) > 0:
                raise WrongSetting("silent_region", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return SilentRegionDetector(self)


class SilentRegionDetector:
    """See the module's text."""

    name = "silent_region"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: SilentRegion) -> None:
        self.config = config
        self._latch = Latch(0.0, 0.0)
        self._unseen = Unseen()
        self._severity: dict[str, Severity] = {}
        """What was said of each region that is silent."""

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        group = group_of(finding)
        self._severity.update(dict.fromkeys(group.names, finding.severity))
        if self._latch.adopt(group, now):
            self._unseen.remember(group, now)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Compare the newest frame of each region with the bus's clock."""
        oldest = now - self.config.silent_seconds
        if health.watching_since > oldest:
            return ()  # Nobody watched: what was silent before may be so still, and nothing is taken back.
        # A region that is silent for longer has no sources any more: it is no longer expected.
        silent = [name for name, seen in health.regions.items() if now - LOST_AFTER_SECONDS < seen < oldest]
        raised, over = self._latch.update(now, silent + self._unseen.still(now, health.regions))
        found = [self._say(now, group, health) for group in raised]
        return found + [self._end(now, group, health.regions) for group in over]

    def _say(self, now: float, group: Group, health: ReaderHealth) -> Finding:
        seen = min(health.regions[name] for name in group.names)
        sources = [source for source, region in health.region_of.items() if region in group.names]
        severity = Severity.CRITICAL if len(sources) >= self.config.page_sources else Severity.WARNING
        self._severity.update(dict.fromkeys(group.names, severity))
        last = datetime.fromtimestamp(seen, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        alone = group.names[0] if len(group.names) == 1 else None
        title = f"{_said(group)} cut off: no frame since {last}"
        message = (
            f"Silent: {names(group)}. Nothing there is seen, and nobody is paged for what happens there, until it is "
            "back. Look at the gateways, the bus and the way between; collectors keep their frames meanwhile."
        )
        evidence = {
            "last_frame": seen,
            "silence_seconds": now - seen,
            "limit_seconds": self.config.silent_seconds,
            "sources": len(sources),
        }
        simulated = bool(sources) and all(source in health.simulated for source in sources)
        place = {"region": alone, "subject": subject_in(group, health), "simulated": simulated}
        return firing(KIND, severity, group, now, title, message, evidence, **place)

    def _end(self, now: float, group: Group, regions: Mapping[str, float]) -> Finding:
        back = all(now - regions.get(name, -LOST_AFTER_SECONDS) < LOST_AFTER_SECONDS for name in group.names)
        words = "sends again" if back else "is no longer expected: it was silent for hours and is forgotten"
        severity = max((self._severity.pop(name, Severity.WARNING) for name in group.names), key=_ORDER.index)
        return resolved(KIND, severity, group, now, f"{names(group)} {words}")


def _said(group: Group) -> str:
    return f"region {group.names[0]} is" if len(group.names) == 1 else f"{len(group.names)} regions are"
