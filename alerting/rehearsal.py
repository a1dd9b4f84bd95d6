"""The first page of a process is as fast as the others: one finding goes all the way, and nothing of it is kept.

The first use of a codec, of a statement or of a plan costs tens of milliseconds, which a page should not wait for.
"""

from collections.abc import Sequence

from alerting.intake import FindingsIntake
from telemetry_bus.bus import Record
from telemetry_bus.findings import Finding, FindingKind, findings_frame
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.schemas import FindingState, Severity
from telemetry_bus.topics import Topic

NAME = "alerting-rehearsal"


def rehearsal_findings(now: float) -> Sequence[Finding]:
    """A finding that has been through a frame and back. It is only ever recorded in a transaction that is undone."""
    finding = Finding(
        id=NAME,
        time=now,
        detector=NAME,
        kind=FindingKind.LAG,
        state=FindingState.FIRING,
        severity=Severity.CRITICAL,
        title=NAME,
    )
    payload = encode(findings_frame(FrameMaker(NAME), [finding], now))
    return FindingsIntake().take([Record(Topic.FINDINGS, 0, 0, now, payload)]).findings
