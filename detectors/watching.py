"""What the detectors that watch Nantucket itself have in common: a latch, and findings that are about no job."""

from collections.abc import Mapping
from typing import Any

from detectors.latch import Group
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.schemas import FindingState, Severity

NAMES_SAID = 8
"""Names in a message; the evidence has as many and the count of all."""


def names(group: Group) -> str:
    """The first names of a group, and how many more there are."""
    more = len(group.names) - NAMES_SAID
    return ", ".join(group.names[:NAMES_SAID]) + (f" and {more} more" if more > 0 else "")


def firing(
    kind: FindingKind,
    severity: Severity,
    group: Group,
    now: float,
    title: str,
    message: str,
    evidence: Mapping[str, Any],
    **place: Any,
) -> Finding:
    """A finding that begins trouble with the things of ``group``."""
    about = (kind.value, severity.value, *group.names, group.since, "firing")
    said = {"count": len(group.names), "names": list(group.names[:NAMES_SAID]), **evidence}
    return Finding(
        id=finding_id(*about),
        time=now,
        detector=kind.value,
        kind=kind,
        state=FindingState.FIRING,
        severity=severity,
        title=title,
        message=message,
        onset_time=group.since,
        evidence=said,
        **place,
    )


def resolved(kind: FindingKind, severity: Severity, group: Group, now: float, title: str, **place: Any) -> Finding:
    """The end of that trouble."""
    about = (kind.value, severity.value, *group.names, group.since, "resolved")
    return Finding(
        id=finding_id(*about),
        time=now,
        detector=kind.value,
        kind=kind,
        state=FindingState.RESOLVED,
        severity=severity,
        title=title,
        onset_time=group.since,
        evidence={"count": len(group.names), "names": list(group.names[:NAMES_SAID])},
        **place,
    )


def node_of(group: Group) -> str | None:
    """The node whose collector a single source ``NODE/gpu`` is; ``None`` for several."""
    return group.names[0].rsplit("/", 1)[0] if len(group.names) == 1 and "/" in group.names[0] else None
