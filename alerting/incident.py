"""An incident: what alerting makes of the findings about one cause. Pure.

Its paging key says what is wrong and about whom, never the first place, which two observers may see differently and
which is a field that can be corrected. A paging key never changes; everything that is sent is named after it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self
from urllib.parse import quote

from telemetry_bus.findings import NAMESPACE, Finding, FindingKind
from telemetry_bus.json_text import plain
from telemetry_bus.schemas import Severity

TITLE_CHARACTERS_MAX = 300
"""What fits on the screen of a phone that wakes somebody, several times over."""
SIMULATED_PREFIX = "[simulated] "


class Tier(StrEnum):
    """Whom an incident reaches."""

    PAGE = "page"
    """Somebody is woken."""
    TICKET = "ticket"
    """Somebody looks today."""
    LOG = "log"
    """It is recorded; nothing is sent."""


class Status(StrEnum):
    """Whether an incident is still going on."""

    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom trouble is about. ``about`` is ``job/NAME``, ``node/NAME`` or ``detector/NAME``.

    ``subject`` tells apart what may go wrong several times over there (see :class:`~telemetry_bus.findings.Finding`).
    What is simulated has a scope of its own, so that it can never join, resolve or hide what is real.
    """

    about: str
    attempt: str | None
    simulated: bool
    subject: str | None = None

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The scope of ``finding``: its job if it names one, else its node, or who says it; and its subject."""
        if finding.job is not None:
            about = f"job/{quote(finding.job, safe='')}"
        elif finding.node is not None:
            about = f"node/{quote(finding.node, safe='')}"
        else:
            about = f"detector/{quote(finding.detector, safe='')}"
        return cls(about, finding.attempt, finding.simulated, finding.subject)

    def text(self) -> str:
        """The scope as one string, different for every scope."""
        attempt = "" if self.attempt is None else f"/attempt/{quote(self.attempt, safe='')}"
        subject = "" if self.subject is None else f"/subject/{quote(self.subject, safe='')}"
        return f"{'simulated/' if self.simulated else ''}{self.about}{attempt}{subject}"


def paging_key(scope: Scope, kind: FindingKind, episode: int) -> str:
    """What decides who is paged: scope (with attempt and subject), class of trouble and episode (from 1)."""
    return f"{scope.text()}/{kind.value}/{episode}"


def incident_id(key: str) -> str:
    """The id of the incident of a paging key: a UUIDv5 of it."""
    return str(uuid.uuid5(NAMESPACE, key))


@dataclass(frozen=True, slots=True)
class Where:
    """Where it started. ``None`` where that is not proven."""

    rank: int | None = None
    node: str | None = None
    gpu: int | None = None
    uuid: str | None = None
    parameter: str | None = None


@dataclass(frozen=True, slots=True)
class Incident:
    """One cause of trouble. Times are event time, UTC seconds; ``None`` is "not known", never zero.

    ``paging_kind`` is the kind it was opened with and a part of its key; ``kind`` is the most telling one that has
    joined. ``origin_step`` is the onset of the finding that says ``where``; ``onset_step`` that of the trouble as a
    whole. ``firing_kinds`` maps each kind that still fires to the time of its newest finding. ``told`` are the
    receivers to whom it has been announced.
    """

    paging_key: str
    scope: Scope
    paging_kind: FindingKind
    episode: int
    status: Status
    kind: FindingKind
    severity: Severity
    tier: Tier
    title: str
    message: str
    job: str | None
    region: str | None
    onset_step: int | None
    onset_time: float | None
    origin_step: int | None
    detected_step: int | None
    detected_time: float
    where: Where
    evidence: Mapping[str, Any]
    causes: Sequence[Mapping[str, Any]]
    world_size: int | None
    ranks_affected: int | None
    last_time: float
    firing_kinds: Mapping[FindingKind, float]
    updates: int = 0
    resolved_time: float | None = None
    told: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        """UUIDv5 of the paging key."""
        return incident_id(self.paging_key)

    @property
    def gpus_affected(self) -> int | None:
        """A rank has one GPU; a finding about a GPU alone is about that one."""
        if self.ranks_affected is not None:
            return self.ranks_affected
        return 1 if self.job is None and self.where.gpu is not None else None

    def document(self) -> dict[str, Any]:
        """The incident as plain JSON, for the store."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The incident that :meth:`document` wrote."""
        fields = dict(document)
        fields["scope"] = Scope(**fields["scope"])
        fields["where"] = Where(**fields["where"])
        fields["paging_kind"] = FindingKind(fields["paging_kind"])
        fields["kind"] = FindingKind(fields["kind"])
        fields["status"] = Status(fields["status"])
        fields["severity"] = Severity(fields["severity"])
        fields["tier"] = Tier(fields["tier"])
        fields["firing_kinds"] = {FindingKind(kind): time for kind, time in fields["firing_kinds"].items()}
        fields["told"] = tuple(fields["told"])
        return cls(**fields)


def said(finding: Finding) -> dict[str, Any]:
    """The fields of an incident that are what its most telling finding says."""
    title = finding.title[:TITLE_CHARACTERS_MAX]
    return {
        "kind": finding.kind,
        "title": SIMULATED_PREFIX + title if finding.simulated and not title.startswith(SIMULATED_PREFIX) else title,
        "message": finding.message,
        "origin_step": finding.onset_step,
        "detected_step": finding.step,
        "detected_time": finding.time,
        "where": where_of(finding),
        "evidence": plain(dict(finding.evidence)),
        "causes": [plain(asdict(cause)) for cause in finding.causes],
    }


def where_of(finding: Finding) -> Where:
    """The place that ``finding`` names."""
    return Where(finding.rank, finding.node, finding.gpu, finding.uuid, finding.parameter)


def opened(finding: Finding, scope: Scope, episode: int, tier: Tier) -> Incident:
    """The incident that ``finding`` begins."""
    return Incident(
        paging_key=paging_key(scope, finding.kind, episode),
        scope=scope,
        paging_kind=finding.kind,
        episode=episode,
        status=Status.FIRING,
        severity=finding.severity,
        tier=tier,
        job=finding.job,
        region=finding.region,
        onset_step=finding.onset_step,
        onset_time=finding.onset_time,
        world_size=finding.world_size,
        ranks_affected=finding.ranks_affected,
        last_time=finding.time,
        firing_kinds={finding.kind: finding.time},
        **said(finding),
    )
