"""A page that somebody asks for, to see that it arrives: signed like any other, and outside of the outbox."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from alerting.body import Presentation, body_text, incident_object
from alerting.delivery import Delivery, delivery_id
from alerting.errors import DeliveryFailed, UnknownReceiver
from alerting.group import Turn
from alerting.incident import Scope, Tier, incident_id, opened
from alerting.receivers import Receiver
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import FindingState, Severity

TITLE = "Test page from Nantucket"


@dataclass(frozen=True, slots=True)
class PageResult:
    """What came of a test page. ``status`` is ``None`` where there was no answer; ``message`` is for a person."""

    taken: bool
    status: int | None
    seconds: float
    message: str


async def send_test_page(receivers: Sequence[Receiver], name: str, clock: Clock) -> PageResult:
    """Open the receiver ``name``, send it one test page, once, and say what came of it.

    Its ``kind`` is ``test``, and its id is a new one each time. Raises :class:`UnknownReceiver`.
    """
    receiver = next((item for item in receivers if item.name == name), None)
    if receiver is None:
        raise UnknownReceiver(name, [item.name for item in receivers])
    delivery = _delivery(name, clock.now())
    async with receiver:
        began = clock.monotonic()
        try:
            status = await receiver.send(delivery)
        except DeliveryFailed as failure:
            return PageResult(False, failure.status, clock.monotonic() - began, str(failure))
        return PageResult(True, status, clock.monotonic() - began, f"receiver {name} took the test page with {status}")


def _delivery(receiver: str, now: float) -> Delivery:
    key = f"test/{receiver}/{uuid.uuid4()}"
    finding = Finding(
        id=key,
        time=now,
        detector="test",
        kind=FindingKind.LAG,
        state=FindingState.FIRING,
        severity=Severity.INFO,
        title=TITLE,
        message="Somebody asked for this page to see that it arrives. Nothing is wrong.",
    )
    incident = opened(finding, Scope.of(finding), 1, Tier.PAGE)
    # It is about no trouble that a detector knows, so it has a kind and a key of its own.
    about = {"id": incident_id(key), "paging_key": key, "kind": "test"}
    shown = incident_object(incident, Presentation(), (), now) | about
    turn = Turn.FIRING.value
    return Delivery(
        id=delivery_id(key, turn, receiver),
        incident_id=about["id"],
        receiver=receiver,
        transition=turn,
        body=body_text(turn, shown),
        created_time=now,
        next_attempt_time=now,
    )
