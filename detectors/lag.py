"""lag: Nantucket reads its own bus too slowly, so that everything it says is late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Group, Latch
from detectors.watching import SaidBefore, firing, group_of, names, resolved, subject_in
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic

KIND = FindingKind.LAG


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
        if self.critical_seconds < self.warning_seconds:
            raise WrongSetting("lag", "critical_seconds", self.critical_seconds, "at least warning_seconds")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return LagDetector(self)


class LagDetector:
    """See the module's text. A topic is one trouble of each copy that reads it: it may get worse, and is over below the
    lower limit."""

    name = "lag"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: Lag) -> None:
        self.config = config
        self._late = Latch(config.hold_seconds, config.clear_seconds)
        self._very_late = Latch(config.hold_seconds, config.clear_seconds)
        self._before = SaidBefore()
        self._worst: dict[str, Severity] = {}
        """What was said of each topic that is late."""

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart, once a tick shows that it is this reader's own lag."""
        self._before.remember(finding)

    def _adopt(self, finding: Finding, now: float) -> None:
        group = group_of(finding)
        self._late.adopt(group, now)
        if finding.severity is Severity.CRITICAL:
            self._very_late.adopt(group_of(finding), now)
        self._worst.update(dict.fromkeys(group.names, finding.severity))

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Compare the lag of each topic with its limits."""
        ours, gone = self._before.sorted_out(now, health)
        for finding in ours:
            self._adopt(finding, now)
        found = [_ended(finding, now) for finding in gone]
        lag = {topic.value: seconds for topic, seconds in health.lag_seconds.items()}
        late, over = self._late.update(now, _above(lag, self.config.warning_seconds))
        very_late, _ = self._very_late.update(now, _above(lag, self.config.critical_seconds))
        worse = {name for group in very_late for name in group.names}
        for group in late:
            if worse.isdisjoint(group.names):
                found.append(self._say(Severity.WARNING, group, now, lag, health))
            else:
                group.place = {
                    "subject": subject_in(group, health, of_the_copy=True)
                }  # what is said below is of the same trouble
        found.extend(self._say(Severity.CRITICAL, group, now, lag, health) for group in very_late)
        for group in over:
            title = f"lag on {names(group)} is below {self.config.warning_seconds:g} s again"
            found.append(resolved(KIND, self._worst.pop(group.names[0], Severity.WARNING), group, now, title))
        return found

    def _say(
        self, severity: Severity, group: Group, now: float, lag: Mapping[str, float], health: ReaderHealth
    ) -> Finding:
        config = self.config
        limit = config.critical_seconds if severity is Severity.CRITICAL else config.warning_seconds
        worst = lag.get(group.names[0], 0.0)
        self._worst[group.names[0]] = severity
        title = f"Nantucket is {worst:.3g} s behind on {names(group)}"
        message = f"Findings and pages come that much late; {limit:g} s are the limit. Give it more processor."
        evidence = {"lag_seconds": worst, "limit_seconds": limit, "reader": health.reader}
        subject = subject_in(group, health, of_the_copy=True)
        return firing(KIND, severity, group, now, title, message, evidence, subject=subject)


def _ended(finding: Finding, now: float) -> Finding:
    """A copy that lagged has gone: nobody reads too slowly any more."""
    title = f"{finding.evidence['reader']}, which was behind, runs no more"
    return resolved(KIND, finding.severity, group_of(finding), now, title)


def _above(lag: Mapping[str, float], limit: float) -> list[str]:
    return [name for name, seconds in lag.items() if seconds > limit]
