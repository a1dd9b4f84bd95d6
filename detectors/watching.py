"""What the detectors that watch Nantucket itself have in common: a latch, and findings that are about no job."""

import hashlib
from collections.abc import Container, Mapping
from typing import Any

from detectors.detector import ReaderHealth
from detectors.latch import Group
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.ledger import LOST_AFTER_SECONDS
from telemetry_bus.schemas import FindingState, Severity

NAMES_SAID = 8
"""Names in a message; the evidence has as many and the count of all."""
GONE_SECONDS = 60.0
"""A copy of the detectors whose clock has not ticked for so long runs no more, or is of no use."""
COLLECTOR_STREAMS = ("gpu", "gpu-events")
"""A collector's sources are ``NODE/gpu`` and ``NODE/gpu-events``."""
JOB_STREAMS = ("train", "metric", "event")
"""A rank's sources are ``JOB/ATTEMPT/RANK/train`` and so on; none of the parts has a slash in it."""


def names(group: Group) -> str:
    """The first names of a group, and how many more there are."""
    more = len(group.names) - NAMES_SAID
    return ", ".join(group.names[:NAMES_SAID]) + (f" and {more} more" if more > 0 else "")


def subject_of(group: Group) -> str:
    """What tells this trouble from others of its kind: the one name, or the first of many and a digest of all."""
    if len(group.names) == 1:
        return group.names[0]
    digest = hashlib.sha256("\n".join(group.names).encode()).hexdigest()[:8]
    return f"{group.names[0]} and {len(group.names) - 1} more ({digest})"


def origin_of(source: str) -> dict[str, Any]:
    """The node whose collector ``source`` is, or the job, attempt and rank that it comes from; empty for any other."""
    parts = source.split("/")
    node, _, stream = source.rpartition("/")
    if node and stream in COLLECTOR_STREAMS:
        return {"node": node}
    if len(parts) == 4 and stream in JOB_STREAMS and parts[2].isascii() and parts[2].isdecimal():
        return {"job": parts[0], "attempt": parts[1], "rank": int(parts[2])}
    return {}


def place_of(group: Group, simulated: Container[str] = ()) -> dict[str, Any]:
    """Where the trouble of a group of sources is: named only for a single one. ``simulated`` are the sources whose rows
    are."""
    origin = origin_of(group.names[0]) if len(group.names) == 1 else {}
    return {**origin, "simulated": all(name in simulated for name in group.names)}


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
    """A finding that begins trouble with the things of ``group``, which keeps its ``place`` for the end."""
    group.place = {"subject": subject_of(group), **place}
    said = {"count": len(group.names), "names": list(group.names[:NAMES_SAID]), **evidence}
    return Finding(
        id=finding_id(kind.value, severity.value, group.place["subject"], group.since, "firing"),
        time=now,
        detector=kind.value,
        kind=kind,
        state=FindingState.FIRING,
        severity=severity,
        title=title,
        message=message,
        onset_time=min(group.since, now),
        evidence=said,
        **group.place,
    )


def resolved(kind: FindingKind, severity: Severity, group: Group, now: float, title: str) -> Finding:
    """The end of that trouble."""
    return Finding(
        id=finding_id(kind.value, group.place["subject"], group.since, "resolved"),
        time=now,
        detector=kind.value,
        kind=kind,
        state=FindingState.RESOLVED,
        severity=severity,
        title=title,
        onset_time=min(group.since, now),
        evidence={"count": len(group.names), "names": list(group.names[:NAMES_SAID])},
        **group.place,
    )


def group_of(finding: Finding) -> Group:
    """The group of which ``finding`` was said before a restart: the names that it gives stand for all of them."""
    known = tuple(str(name) for name in finding.evidence["names"])
    fields = ("region", "job", "attempt", "node", "rank", "subject", "simulated")
    place = {name: getattr(finding, name) for name in fields}
    return Group(known, finding.time if finding.onset_time is None else finding.onset_time, set(known), place)


class SaidBefore:
    """What copies of the detectors said of their own reading before this one started: it is their own to end while they
    live, and nobody's when they run no more."""

    def __init__(self) -> None:
        self._waiting: list[Finding] = []

    def remember(self, finding: Finding) -> None:
        """Take ``finding`` (bounded by what is open at once, see :mod:`detectors.memory`)."""
        self._waiting.append(finding)

    def sorted_out(self, now: float, health: ReaderHealth) -> tuple[list[Finding], list[Finding]]:
        """What this copy has said itself, before a restart, and what is of a copy that is gone."""
        if not self._waiting:
            return [], []
        ours, gone, others = list[Finding](), list[Finding](), list[Finding]()
        for finding in self._waiting:
            reader = str(finding.evidence.get("reader", health.reader))
            (ours if reader == health.reader else gone if _is_gone(reader, now, health) else others).append(finding)
        self._waiting = others
        return ours, gone


def _is_gone(reader: str, now: float, health: ReaderHealth) -> bool:
    """Whether ``reader`` ticks no more: beside each copy runs a clock."""
    return now - health.last_seen.get(f"{reader.rpartition('/')[0]}/ticks", 0.0) > GONE_SECONDS


def subject_in(group: Group, health: ReaderHealth, *, of_the_copy: bool = False) -> str:
    """The subject of what a reader says of its own reading: trouble of one slice, or even of one copy, is its own."""
    reader = f" read by {health.reader}" if of_the_copy and health.reader else ""
    return f"{subject_of(group)}{reader}{f' of slice {health.part}' if health.part else ''}"


class Unseen:
    """Sources that were in trouble before a restart and of which this reader has seen nothing: nothing is known of
    them, so nothing has changed. After :data:`~telemetry_bus.ledger.LOST_AFTER_SECONDS` they are forgotten."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def remember(self, group: Group, now: float) -> None:
        """Names of ``group`` (bounded by the latch that adopts it) were in trouble at ``now``."""
        self._until.update(dict.fromkeys(group.names, now + LOST_AFTER_SECONDS))

    def still(self, now: float, seen: Container[str]) -> list[str]:
        """Those that are neither in ``seen`` nor to be forgotten."""
        if self._until:
            self._until = {
                name: min(until, now + LOST_AFTER_SECONDS)
                for name, until in self._until.items()
                if now < until and name not in seen
            }
        return list(self._until)
