"""Who is told: from severity to tier, and from tier to receivers. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from alerting.group import Change, Turn
from alerting.incident import Incident, Tier
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import Severity

DEFAULT_TIERS: Mapping[Severity, Tier] = {
    Severity.CRITICAL: Tier.PAGE,
    Severity.WARNING: Tier.TICKET,
    Severity.INFO: Tier.LOG,
}
DELIVERED: frozenset[Tier] = frozenset({Tier.PAGE, Tier.TICKET})
"""The tiers that may be sent to anybody; what is only logged is only recorded."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which tier a severity has; a severity that is not named keeps its default."""

    tiers: Mapping[Severity, Tier] = field(default_factory=lambda: dict(DEFAULT_TIERS))

    def tier(self, finding: Finding) -> Tier:
        """The tier of the incident that ``finding`` would open."""
        return self.tiers.get(finding.severity, DEFAULT_TIERS[finding.severity])


def address(change: Change, receivers: Mapping[str, frozenset[Tier]]) -> tuple[Change, tuple[tuple[str, str], ...]]:
    """The change with its ``told`` brought up to date, and ``(receiver, transition)`` for whom it is sent to.

    ``receivers`` maps a name to the tiers that it takes. Whoever has been told of an incident is told how it goes on; a
    receiver that its tier has only now reached is told of it with ``firing``. Transitions are ``firing``, ``updated:N``
    and ``resolved``.
    """
    incident = change.incident
    if incident is None or change.turn is None:
        return change, ()
    told = [name for name in incident.told if name in receivers]
    going_on = [(name, _transition(change.turn, incident)) for name in told]
    if change.turn is Turn.RESOLVED:
        return change, tuple(going_on)
    new = [
        name for name, tiers in receivers.items() if incident.tier in tiers & DELIVERED and name not in incident.told
    ]
    changed = replace(change, incident=replace(incident, told=(*incident.told, *new)))
    return changed, (*going_on, *((name, Turn.FIRING.value) for name in new))


def _transition(turn: Turn, incident: Incident) -> str:
    return f"{turn.value}:{incident.updates}" if turn is Turn.UPDATED else turn.value
