"""What Nantucket cannot see just now, in words: its own open incidents about how it is fed. Pure.

Every page carries these sentences, so that whoever is woken knows what a silence on the page does not mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from alerting.group import Change
from alerting.incident import SIMULATED_PREFIX, Incident, Status
from telemetry_bus.findings import FindingKind

SENTENCES: Mapping[FindingKind, str] = {
    FindingKind.SILENT_SOURCE: "{who} sends no frames",
    FindingKind.SILENT_REGION: "region {who} is cut off",
    FindingKind.MISSING_FRAMES: "frames of {who} are missing",
    FindingKind.LAG: "{who} is read too late",
    FindingKind.CLOCK_OFFSET: "the clock of {who} is wrong",
    FindingKind.REFUSED_FRAMES: "frames are refused ({who})",
}
"""The kinds that are about Nantucket's own sight, each with what it means for it."""
INCIDENTS_MAX = 500
"""Open incidents that are kept in view; some 3 KB each: 1.5 MB. Of more the oldest are no longer counted."""
SAID_MAX = 8
"""Sentences in a page: what a person reads. One more says how many are left out."""
NAMES_SAID = 3
DAY_SECONDS = 86_400.0


def sentence(incident: Incident, now: float) -> str:
    """What cannot be seen because of ``incident``, and since when; with the date where it is older than a day."""
    text = SENTENCES[incident.kind].format(who=_who(incident))
    since = incident.detected_time if incident.onset_time is None else incident.onset_time
    try:
        began = datetime.fromtimestamp(since, UTC)
    except (OverflowError, ValueError, OSError):
        moment = "a time that cannot be read"
    else:
        moment = f"{began:%H:%M:%S} UTC" if 0.0 <= now - since < DAY_SECONDS else f"{began:%Y-%m-%d %H:%M:%S} UTC"
    return f"{SIMULATED_PREFIX if incident.scope.simulated else ''}{text} since {moment}"


def _who(incident: Incident) -> str:
    """The names that the detector gives, else the subject, else the node."""
    names = incident.evidence.get("names")
    if isinstance(names, list) and names:
        said = ", ".join(str(name) for name in names[:NAMES_SAID])
        count = incident.evidence.get("count")
        left = (count if isinstance(count, int) else len(names)) - NAMES_SAID
        return f"{said} and {left} more" if left > 0 else said
    return incident.scope.subject or incident.where.node or incident.scope.about


@dataclass(frozen=True, slots=True)
class Sight:
    """The open incidents of :data:`SENTENCES`, by id, oldest first."""

    open: Mapping[str, Incident] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, incidents: Iterable[Incident]) -> "Sight":
        """The sight while ``incidents`` are open."""
        watched = (item for item in incidents if item.kind in SENTENCES and item.status is Status.FIRING)
        return cls({item.id: item for item in sorted(watched, key=lambda item: item.detected_time)[-INCIDENTS_MAX:]})

    def after(self, change: Change) -> "Sight":
        """The sight once ``change`` is made."""
        incident = change.incident
        if incident is None or incident.kind not in SENTENCES:
            return self
        others = [item for item in self.open.values() if item.id != incident.id]
        return Sight.of([*others, incident])

    def sentences(self, now: float, besides: str | None = None) -> tuple[str, ...]:
        """What cannot be seen at ``now``, newest first; the incident ``besides`` is left out, for a page about it."""
        seen = [item for item in reversed(list(self.open.values())) if item.id != besides]
        said = [sentence(item, now) for item in seen[:SAID_MAX]]
        left = len(seen) - len(said)
        return (*said, f"and {left} more") if left > 0 else tuple(said)
