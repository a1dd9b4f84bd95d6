"""One thing that is to be told to one receiver, and when it is tried again. Pure."""

import random
import uuid
from dataclasses import dataclass, field
from enum import StrEnum

from telemetry_bus.findings import NAMESPACE


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    """It is not tried any more; ``last_error`` says why."""


def delivery_id(paging_key: str, transition: str, receiver: str) -> str:
    """The id under which a receiver knows a delivery: the same on every retry and from every copy of Nantucket."""
    return str(uuid.uuid5(NAMESPACE, f"{paging_key}\n{transition}\n{receiver}"))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of the outbox. ``next_attempt_time`` and ``created_time`` are wall clock, UTC seconds.

    ``waited_seconds`` is the sum of the waits between its tries: time that no clock can step and no restart adds to.
    """

    id: str
    incident_id: str
    receiver: str
    transition: str
    body: str = field(repr=False)
    created_time: float
    next_attempt_time: float
    attempts: int = 0
    waited_seconds: float = 0.0

    @property
    def lane(self) -> tuple[str, str]:
        """Deliveries of one lane are sent in order, one at a time; lanes do not wait for each other."""
        return self.receiver, self.incident_id


@dataclass(frozen=True, slots=True)
class Mark:
    """What came of a try, as the outbox remembers it. ``last_error`` is ``None`` where the delivery was taken."""

    delivery_id: str
    state: DeliveryState
    attempts: int
    waited_seconds: float
    next_attempt_time: float
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Backoff:
    """When a delivery that failed is tried again: doubling waits with jitter, between the bounds, until the horizon."""

    first_seconds: float = 0.25
    max_seconds: float = 60.0
    """A receiver that is back is used within a minute."""
    retry_after_seconds_max: float = 3600.0
    """A receiver may ask for patience, but not for a silence of days."""
    horizon_seconds: float = 24 * 3600.0
    """Who has not taken a page for a day has been told by other means; the delivery is shown as dead."""

    @property
    def longest_seconds(self) -> float:
        """No wait is longer."""
        return max(self.max_seconds, self.retry_after_seconds_max)

    def wait_seconds(self, attempts: int, asked_seconds: float | None, chance: random.Random) -> float:
        """The wait after try number ``attempts`` (from 1). What the receiver asked for is a lower bound.

        Jitter takes up to half of the wait away, so that deliveries that failed together do not come back together.
        """
        doublings = min(attempts - 1, 32)
        wait = min(self.max_seconds, self.first_seconds * 2.0**doublings) * (1.0 - 0.5 * chance.random())
        if asked_seconds is None:
            return wait
        return max(wait, min(asked_seconds, self.retry_after_seconds_max))
