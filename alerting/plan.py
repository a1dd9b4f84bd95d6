"""From one finding to what is written and what is sent: grouping, routing and the bodies, put together. Pure.

It runs inside the store's transaction, and, where the store is away, on what the service remembers: the same findings
give the same ids either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alerting.body import Presentation, body_text, incident_object
from alerting.delivery import Delivery, delivery_id
from alerting.group import TELLING, Change, Scene, Turn, group
from alerting.incident import Incident, Tier, paging_key
from alerting.receipts import Receipts, Told
from alerting.route import Routing, address
from alerting.sight import Sight
from telemetry_bus.findings import Finding


@dataclass(frozen=True, slots=True)
class Planned:
    """A change and the deliveries that must be written with it.

    ``taken`` are the ids of deliveries that their receivers have, as true receipts show: they are not sent, whether
    they are planned here or wait already. ``told`` is what was given as receipts.
    """

    change: Change
    deliveries: tuple[Delivery, ...] = ()
    taken: frozenset[str] = frozenset()
    told: Told = field(default_factory=Told)

    @property
    def unsent(self) -> tuple[Delivery, ...]:
        """The deliveries that nobody has yet."""
        return tuple(delivery for delivery in self.deliveries if delivery.id not in self.taken)


@dataclass(frozen=True, slots=True)
class Planner:
    """Frozen: how findings become changes and deliveries. ``receivers`` maps a name to the tiers that it takes;
    ``receipts`` are what is believed of receipts."""

    routing: Routing
    receivers: Mapping[str, frozenset[Tier]]
    presentation: Presentation
    receipts: Receipts = field(default_factory=Receipts)

    def plan(
        self, scene: Scene, finding: Finding, now: float, blind: Sequence[str], sight: Sight | None = None
    ) -> Planned:
        """What ``finding`` calls for in ``scene``, at ``now`` (UTC seconds), while Nantucket cannot see ``blind``.

        ``sight`` holds the open incidents about Nantucket's own sight: what they say is added to ``blind``.
        """
        finding, told = self.receipts.taken_off(finding)
        proven = frozenset(receipt.delivery_id for receipt in told.receipts)
        change, addressed = address(group(scene, finding, self.routing.tier), self.receivers)
        incident = change.incident
        if incident is None or change.turn is None or not addressed:
            return Planned(change, taken=proven, told=told)
        own = () if sight is None else sight.after(change).sentences(now, besides=incident.id)
        deliveries = self._deliveries(incident, addressed, now, (*blind, *own))
        covered = _covered(incident, scene, told)
        return Planned(change, deliveries, proven | {item.id for item in deliveries if item.id in covered}, told)

    def announce(self, incident: Incident, now: float, blind: Sequence[str]) -> tuple[Delivery, ...]:
        """The first word of ``incident`` to everybody who is told of it."""
        return self._deliveries(incident, [(name, Turn.FIRING.value) for name in incident.told], now, blind)

    def _deliveries(
        self, incident: Incident, addressed: Sequence[tuple[str, str]], now: float, blind: Sequence[str]
    ) -> tuple[Delivery, ...]:
        shown = incident_object(incident, self.presentation, blind, now)
        return tuple(
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


def _covered(incident: Incident, scene: Scene, told: Told) -> set[str]:
    """The first words of ``incident`` that its receivers have had already, by the receipts of ``told``.

    Trouble that is several symptoms of one cause is named after the one that was seen first, and a gateway may have
    seen another one first: a receipt for the next episode of any of them is a receipt for the incident.
    """
    kinds = TELLING if incident.paging_kind in TELLING else (incident.paging_kind,)
    keys = [paging_key(incident.scope, kind, scene.episodes.get(kind, 0) + 1) for kind in kinds]
    firing = Turn.FIRING.value
    return {
        delivery_id(incident.paging_key, firing, receipt.receiver)
        for receipt in told.receipts
        if receipt.delivery_id in {delivery_id(key, firing, receipt.receiver) for key in keys}
    }
