"""From findings to incidents: one per cause. Pure and deterministic.

A finding that fires goes, in this order, to: the ending that it is not newer than (late evidence, which pages nobody);
the open incident in which its kind fires; the open incident of its key; the open incident of the same job and attempt
that it is a symptom of; a new incident.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from alerting.incident import Incident, Scope, Status, Tier, Where, opened, said, where_of
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.schemas import FindingState, Severity

JOIN_SECONDS = 900.0
"""A NaN on one rank ends as a stall of all when the collective's watchdog gives up: 600 s by default, and up to 300 s
until the stall is found. Trouble of the same job and attempt within this of an open incident is its symptom."""

TELLING: Mapping[FindingKind, int] = {FindingKind.STALL: 1, FindingKind.LOSS_SPIKE: 2, FindingKind.NONFINITE: 3}
"""The kinds that are symptoms of each other, and how much each one tells of the cause."""

_SEVERITY = {Severity.INFO: 0, Severity.WARNING: 1, Severity.CRITICAL: 2}
_TIER = {Tier.LOG: 0, Tier.TICKET: 1, Tier.PAGE: 2}


class Turn(StrEnum):
    """What a finding has done to an incident, as receivers are told."""

    FIRING = "firing"
    UPDATED = "updated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Ending:
    """When a kind was last said to be over (event time), and the incident that it was a part of, if any."""

    time: float
    incident_id: str | None


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of one scope: open incidents, the last resolved episode by paging kind, and endings by kind."""

    open: tuple[Incident, ...] = ()
    episodes: Mapping[FindingKind, int] = field(default_factory=dict)
    endings: Mapping[FindingKind, Ending] = field(default_factory=dict)

    def after(self, change: "Change") -> "Scene":
        """The scene once ``change`` is made."""
        episodes, endings = dict(self.episodes), dict(self.endings)
        others = tuple(item for item in self.open if change.incident is None or item.id != change.incident.id)
        if change.ending is not None:
            endings[change.finding.kind] = change.ending
        if change.incident is None:
            return Scene(self.open, episodes, endings)
        if change.incident.status is Status.RESOLVED:
            episodes[change.incident.paging_kind] = change.incident.episode
            return Scene(others, episodes, endings)
        return Scene((*others, change.incident), episodes, endings)


@dataclass(frozen=True, slots=True)
class Change:
    """What a finding calls for.

    ``incident`` is the incident as it is from now on (``None``: it stays as it is), ``incident_id`` the one that the
    finding belongs to (``None``: to no incident), ``turn`` what receivers are told (``None``: nothing).
    """

    finding: Finding
    incident_id: str | None = None
    incident: Incident | None = None
    turn: Turn | None = None
    ending: Ending | None = None


def group(scene: Scene, finding: Finding, tier_of: Callable[[Finding], Tier]) -> Change:
    """What ``finding``, which has not been seen before, changes in the ``scene`` of its scope."""
    if finding.state is FindingState.RESOLVED:
        return _resolve(scene, finding)
    ending = scene.endings.get(finding.kind)
    if ending is not None and _is_late(finding, ending):
        return Change(finding, ending.incident_id)
    incident = _home(scene, finding)
    if incident is None:
        fresh = opened(finding, Scope.of(finding), scene.episodes.get(finding.kind, 0) + 1, tier_of(finding))
        return Change(finding, fresh.id, fresh, Turn.FIRING)
    return _join(incident, finding, tier_of(finding))


def _is_late(finding: Finding, ending: Ending) -> bool:
    """Of a subject one detector speaks, tick by tick: what it says after an end, at the same tick, is no late evidence.

    So a lag that falls from critical to warning, whose one level ends as the other is said, goes on.
    """
    return finding.time < ending.time or (finding.time == ending.time and finding.subject is None)


def _home(scene: Scene, finding: Finding) -> Incident | None:
    kind = finding.kind
    for incident in scene.open:
        if kind in incident.firing_kinds:
            return incident
    for incident in scene.open:
        if incident.paging_kind is kind:
            return incident
    if kind not in TELLING or finding.job is None:
        return None
    began = finding.time if finding.onset_time is None else finding.onset_time
    near = [
        incident
        for incident in scene.open
        if incident.paging_kind in TELLING and abs(began - incident.last_time) <= JOIN_SECONDS
    ]
    return max(near, key=lambda incident: (incident.last_time, incident.paging_key), default=None)


def _join(incident: Incident, finding: Finding, tier: Tier) -> Change:
    kept = incident.firing_kinds.get(finding.kind, finding.time)
    joined = replace(
        incident,
        firing_kinds={**incident.firing_kinds, finding.kind: max(kept, finding.time)},
        last_time=max(incident.last_time, finding.time),
        **_wider(incident, finding, tier),
        **_corrected(incident, finding),
    )
    material = any(
        getattr(joined, name) != getattr(incident, name) for name in ("kind", "tier", "where", "origin_step")
    )
    if material:
        joined = replace(joined, updates=joined.updates + 1)
    return Change(finding, incident.id, joined, Turn.UPDATED if material else None)


def _wider(incident: Incident, finding: Finding, tier: Tier) -> dict[str, Any]:
    """What only grows as findings join: how bad, how many, since when."""
    return {
        "severity": max(incident.severity, finding.severity, key=_SEVERITY.__getitem__),
        "tier": max(incident.tier, tier, key=_TIER.__getitem__),
        "onset_step": _known(min, incident.onset_step, finding.onset_step),
        "onset_time": _known(min, incident.onset_time, finding.onset_time),
        "world_size": _known(max, incident.world_size, finding.world_size),
        "ranks_affected": _known(max, incident.ranks_affected, finding.ranks_affected),
        "region": finding.region if incident.region is None else incident.region,
    }


def _corrected(incident: Incident, finding: Finding) -> dict[str, Any]:
    """What is said better by ``finding``: everything if it tells more or shows an earlier origin, else the gaps."""
    if TELLING.get(finding.kind, 0) > TELLING.get(incident.kind, 0):
        return said(finding)
    if finding.kind is not incident.kind:
        return {}
    known, new = incident.origin_step, finding.onset_step
    if known is not None and new is not None and new != known:
        return said(finding) if new < known else {}
    return {"where": _filled(incident.where, where_of(finding))}


def _filled(known: Where, new: Where) -> Where:
    """``known`` with its gaps filled from ``new``, unless the two name different places."""
    pairs = [(getattr(known, item.name), getattr(new, item.name)) for item in fields(Where)]
    if any(old is not None and fresh is not None and old != fresh for old, fresh in pairs):
        return known
    return Where(*(fresh if old is None else old for old, fresh in pairs))


def _known(choose: Callable[[Any, Any], Any], old: Any, new: Any) -> Any:
    if old is None or new is None:
        return new if old is None else old
    return choose(old, new)


def _resolve(scene: Scene, finding: Finding) -> Change:
    incident = next((item for item in scene.open if finding.kind in item.firing_kinds), None)
    if incident is not None and finding.time < incident.firing_kinds[finding.kind]:
        incident = None  # it ends an earlier episode, and has come late
    ending = scene.endings.get(finding.kind)
    if ending is None or finding.time > ending.time:
        ending = Ending(finding.time, None if incident is None else incident.id)
    if incident is None:
        return Change(finding, ending.incident_id, ending=ending)
    firing = {kind: time for kind, time in incident.firing_kinds.items() if kind is not finding.kind}
    if firing:
        return Change(finding, incident.id, replace(incident, firing_kinds=firing), ending=ending)
    over = replace(incident, firing_kinds={}, status=Status.RESOLVED, resolved_time=finding.time)
    return Change(finding, incident.id, over, Turn.RESOLVED, ending)
