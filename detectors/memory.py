"""What was said and not taken back: read from the findings topic at a start, so that no restart leaves trouble open.

Pure: it is given findings in the order in which they were published.
"""

from collections.abc import Iterable

from telemetry_bus.findings import Finding
from telemetry_bus.schemas import FindingState

OPEN_MAX = 16_384
"""Troubles that are open at once: one for each attempt of a job that is watched. The oldest are forgotten first."""

Trouble = tuple[object, ...]


class OpenFindings:
    """The newest finding of every trouble that fires."""

    def __init__(self) -> None:
        self._open: dict[Trouble, Finding] = {}
        self.forgotten = 0

    def take(self, findings: Iterable[Finding]) -> None:
        """Take what was said next."""
        for finding in findings:
            trouble = trouble_of(finding)
            known = self._open.get(trouble)
            if finding.state is FindingState.FIRING:
                self._open.pop(trouble, None)
                self._open[trouble] = finding
                if len(self._open) > OPEN_MAX:
                    del self._open[next(iter(self._open))]
                    self.forgotten += 1
            elif known is not None and finding.time >= known.time:
                del self._open[trouble]

    def of(self, detector: str, before: float) -> list[Finding]:
        """What ``detector`` said of times earlier than ``before`` (UTC seconds) and has not taken back."""
        return [finding for finding in self._open.values() if finding.detector == detector and finding.time < before]


def trouble_of(finding: Finding) -> Trouble:
    """What a firing finding and its end have in common. The place within a job may be corrected meanwhile."""
    where = (finding.job, finding.attempt) if finding.job is not None else (finding.node,)
    return (finding.detector, finding.kind, *where, finding.subject, finding.simulated)


def is_ended_by(finding: Finding, end: Finding) -> bool:
    """Whether ``end`` is the end of what ``finding`` says."""
    return trouble_of(finding) == trouble_of(end) and finding.time <= end.time
