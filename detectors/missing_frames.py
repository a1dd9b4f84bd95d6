"""missing_frames: frames that a source has made have not come, or will not come any more.

Loss is measured: each source counts its frames. A gap is *outstanding* while a backlog may still fill it, and *lost*
later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Latch
from detectors.watching import Unseen, firing, group_of, names, place_of, resolved, subject_in
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic

ALL_SOURCES = "all sources"


@dataclass(frozen=True, slots=True)
class MissingFrames:
    """Settings: hold_seconds a gap may stay open before it is said; clear_seconds after the last loss until that is
    taken back."""

    hold_seconds: float = 30.0
    clear_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("hold_seconds", "clear_seconds"):
            if not getattr(self, name) > 0:
                raise WrongSetting("missing_frames", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return MissingFramesDetector(self)


class MissingFramesDetector:
    """See the module's text."""

    name = "missing_frames"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: MissingFrames) -> None:
        self.config = config
        self._outstanding = Latch(0.0, 0.0)
        self._lost = Latch(0.0, config.clear_seconds)
        self._unseen = Unseen()
        self._lost_before = 0

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        group = group_of(finding)
        if group.names == (ALL_SOURCES,):
            self._lost.adopt(group, now)
        elif self._outstanding.adopt(group, now):
            self._unseen.remember(group, now)  # Nobody knows any more what was missed: it may come until it is lost.

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Say which sources have had gaps for long, and when frames were lost for ever."""
        kind, severity = FindingKind.MISSING_FRAMES, Severity.WARNING
        old = [name for name, holes in health.holes.items() if now - holes.since >= self.config.hold_seconds]
        raised, over = self._outstanding.update(now, old + self._unseen.still(now, ()), health.simulated)
        found = []
        for group in raised:
            frames = sum(health.holes[name].outstanding for name in group.names)
            title = f"{frames} frames of {names(group)} have not come"
            message = "A backlog may still bring them; until then curves and counts have gaps."
            evidence, place = {"outstanding": frames}, place_of(group, health.simulated)
            found.append(firing(kind, severity, group, now, title, message, evidence, **place))
        for group in over:
            words = f"no frames of {names(group)} are outstanding any more"
            found.append(resolved(kind, severity, group, now, words))
        return found + self._losses(now, health)

    def _losses(self, now: float, health: ReaderHealth) -> list[Finding]:
        lost = health.lost
        more = max(0, lost - self._lost_before)
        self._lost_before = lost
        kind, severity = FindingKind.MISSING_FRAMES, Severity.WARNING
        raised, over = self._lost.update(now, [ALL_SOURCES] if more else [])
        message = (
            "They are gone: what a bound, a dead disk or a long outage took. Counts of the gaps stay in the metrics."
        )
        evidence, title = {"lost": more, "lost_in_all": lost}, f"{more} frames are lost"
        found = [
            firing(kind, severity, group, now, title, message, evidence, subject=subject_in(group, health))
            for group in raised
        ]
        return found + [resolved(kind, severity, group, now, "no further frames were lost") for group in over]
