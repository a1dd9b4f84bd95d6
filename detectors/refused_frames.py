"""refused_frames: frames or rows were refused and lie in the dead-letter topic, by reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Latch
from detectors.watching import firing, group_of, names, resolved, subject_in
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class RefusedFrames:
    """Settings: clear_seconds without a further refusal until it is taken back."""

    clear_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("clear_seconds",):
            if not getattr(self, name) > 0:
                raise WrongSetting("refused_frames", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return RefusedFramesDetector(self)


class RefusedFramesDetector:
    """See the module's text."""

    name = "refused_frames"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: RefusedFrames) -> None:
        self.config = config
        self._latch = Latch(0.0, config.clear_seconds)
        self._before: dict[str, int] = {}

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        self._latch.adopt(group_of(finding), now)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Compare the counts of refusals with those of the tick before."""
        more = {reason: count - self._before.get(reason, 0) for reason, count in health.refused.items()}
        self._before = dict(health.refused)
        raised, over = self._latch.update(now, [reason for reason, count in more.items() if count > 0])
        kind, severity = FindingKind.REFUSED_FRAMES, Severity.WARNING
        found = []
        for group in raised:
            count = sum(more[reason] for reason in group.names)
            title = f"{count} frames were refused: {names(group)}"
            message = "They lie in the dead-letter topic with their reason and first bytes; nothing else was held up."
            evidence = {"refused": count, "refused_in_all": {reason: health.refused[reason] for reason in group.names}}
            subject = subject_in(group, health)
            found.append(firing(kind, severity, group, now, title, message, evidence, subject=subject))
        return found + [
            resolved(kind, severity, group, now, f"no further frames were refused: {names(group)}") for group in over
        ]
