"""silent_source: a collector that has sent before sends no more.

A node's collector makes a frame at least every few seconds, whether or not its GPUs work, so silence means that the
collector, its node or the way from it is gone. Sources that end with their work (a job's ranks) are not watched here:
see stall.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Latch
from detectors.watching import Unseen, firing, group_of, names, place_of, resolved
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.source_table import LastSeen
from telemetry_bus.topics import Topic

REGION_SECONDS = 5.0
"""A region whose newest frame is older is waited for: a second later it sends again, or it is silent as a whole."""


@dataclass(frozen=True, slots=True)
class SilentSource:
    """Settings: silent_seconds until silence is said; suffixes of the sources that are watched (a rank's sources end
    with its job)."""

    silent_seconds: float = 15.0
    suffixes: tuple[str, ...] = ("/gpu",)

    def __post_init__(self) -> None:
        for name in ("silent_seconds",):
            if not getattr(self, name) > 0:
                raise WrongSetting("silent_source", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return SilentSourceDetector(self)


class SilentSourceDetector:
    """See the module's text."""

    name = "silent_source"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: SilentSource) -> None:
        self.config = config
        self._latch = Latch(0.0, 0.0)
        self._unseen = Unseen()

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        group = group_of(finding)
        if self._latch.adopt(group, now):
            self._unseen.remember(group, now)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Compare what was last seen of each source with the bus's clock."""
        oldest = now - self.config.silent_seconds
        if health.watching_since > oldest:
            return ()  # Nobody watched: what was silent before may be so still, and nothing is taken back.
        silent = [name for name in _unseen_since(health.last_seen, oldest) if name.endswith(self.config.suffixes)]
        silent = self._without_regions(now, silent, health)
        return self._say(now, silent + self._unseen.still(now, health.last_seen), health)

    def _without_regions(self, now: float, silent: list[str], health: ReaderHealth) -> list[str]:
        """Leave out the sources of a region that is silent, or about to be: that is one trouble (silent_region). What
        was said before stays said."""
        quiet = {name for name, seen in health.regions.items() if seen < now - REGION_SECONDS}
        if not quiet:
            return silent
        return [name for name in silent if self._latch.is_raised(name) or health.region_of.get(name) not in quiet]

    def _say(self, now: float, silent: Iterable[str], health: ReaderHealth) -> list[Finding]:
        raised, over = self._latch.update(now, silent, health.simulated)
        kind, severity = FindingKind.SILENT_SOURCE, Severity.WARNING
        found = []
        for group in raised:
            seen = min(health.last_seen[name] for name in group.names)
            what = f"{group.names[0]} has" if len(group.names) == 1 else f"{len(group.names)} sources have"
            title, message = f"{what} sent nothing for {now - seen:.0f} s", f"Silent: {names(group)}."
            evidence = {
                "silence_seconds": now - seen,
                "limit_seconds": self.config.silent_seconds,
                "sources": len(health.last_seen),
            }
            found.append(
                firing(kind, severity, group, now, title, message, evidence, **place_of(group, health.simulated))
            )
        for group in over:
            back = all(name in health.last_seen for name in group.names)
            words = "sends again" if back else "is no longer expected: it was silent for hours and is forgotten"
            found.append(resolved(kind, severity, group, now, f"{names(group)} {words}"))
        return found


def _unseen_since(last_seen: Mapping[str, float], oldest: float) -> list[str]:
    """The sources that were last seen before ``oldest``: of a whole fleet, asked of its arrays."""
    if isinstance(last_seen, LastSeen):
        return last_seen.before(oldest)
    return [name for name, seen in last_seen.items() if seen < oldest]
