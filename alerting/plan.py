"""From one finding to what is written and what is sent: grouping, routing and the bodies, put together. Pure.

It runs inside the store's transaction, and, where the store is away, on what the service remembers: the same findings
give the same ids either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alerting.body import Presentation, body_text, incident_object
from alerting.delivery import Delivery, delivery_id
from alerting.group import Change, Scene, group
from alerting.incident import Tier
from alerting.route import Routing, address
from alerting.sight import Sight
from telemetry_bus.findings import Finding


@dataclass(frozen=True, slots=True)
class Planned:
    """A change and the deliveries that must be written with it."""

    change: Change
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True, slots=True)
class Planner:
    """Frozen: how findings become changes and deliveries. ``receivers`` maps a name to the tiers that it takes."""

    routing: Routing
    receivers: Mapping[str, frozenset[Tier]]
    presentation: Presentation

    def plan(
        self, scene: Scene, finding: Finding, now: float, blind: Sequence[str], sight: Sight | None = None
    ) -> Planned:
        """What ``finding`` calls for in ``scene``, at ``now`` (UTC seconds), while Nantucket cannot see ``blind``.

        ``sight`` holds the open incidents about Nantucket's own sight: what they say is added to ``blind``.
        """
        change, addressed = address(group(scene, finding, self.routing.tier), self.receivers)
        incident = change.incident
        if incident is None or change.turn is None or not addressed:
            return Planned(change)
        own = () if sight is None else sight.after(change).sentences(now, besides=incident.id)
        shown = incident_object(incident, self.presentation, (*blind, *own), now)
        deliveries = tuple(
            Delivery(
                id=delivery_id(incident.paging_key, transition, receiver),
                incident_id=incident.id,
                receiver=receiver,
                transition=transition,
                body=body_text(transition.partition(":")[0], shown),
                created_time=now,
                next_attempt_time=now,
            )
            for receiver, transition in addressed
        )
        return Planned(change, deliveries)
