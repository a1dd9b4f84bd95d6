"""One try of one delivery, and what comes of it: what is common to the outbox and to a gateway that has none."""

import logging
import random
from collections.abc import Mapping

from alerting.delivery import Backoff, Delivery, DeliveryState, Mark
from alerting.errors import DeliveryFailed, Outcome
from alerting.receivers import Receiver
from alerting.stats import Stats
from telemetry_bus.runtime.clock import Clock

_log = logging.getLogger(__name__)


class Courier:
    """Sends deliveries to ``receivers`` (open ones, by name), one try at a time, and counts what came of it."""

    def __init__(
        self,
        receivers: Mapping[str, Receiver],
        clock: Clock,
        stats: Stats,
        backoff: Backoff,
        chance: random.Random | None = None,
    ) -> None:
        self._receivers = receivers
        self._clock = clock
        self._stats = stats
        self._backoff = backoff
        self._chance = random.Random() if chance is None else chance

    async def attempt(self, delivery: Delivery) -> Mark:
        """Send once. Whatever goes wrong is in the mark."""
        attempts = delivery.attempts + 1
        self._stats.retries_total += attempts > 1
        try:
            await self._receivers[delivery.receiver].send(delivery)
        except DeliveryFailed as failure:
            return self._failed(delivery, attempts, failure)
        except Exception as error:  # noqa: BLE001 - a fault of ours in one delivery must not end the paging of the others
            _log.exception("delivery %s to %s failed by a fault of Nantucket's own", delivery.id, delivery.receiver)
            detail = f"a fault of Nantucket's own ({type(error).__name__}); the log has it"
            fault = DeliveryFailed(delivery.receiver, Outcome.OUR_FAULT, detail, retryable=True)
            return self._failed(delivery, attempts, fault)
        self._stats.tries_total[Outcome.TAKEN] += 1
        return Mark(delivery.id, DeliveryState.DELIVERED, attempts, delivery.waited_seconds, self._clock.now(), None)

    def _failed(self, delivery: Delivery, attempts: int, failure: DeliveryFailed) -> Mark:
        self._stats.tries_total[failure.reason] += 1
        wait = self._backoff.wait_seconds(attempts, failure.retry_after_seconds, self._chance)
        waited, state, error = delivery.waited_seconds + wait, DeliveryState.PENDING, str(failure)
        if not failure.retryable:
            state = DeliveryState.DEAD
        elif waited > self._backoff.horizon_seconds:
            state = DeliveryState.DEAD
            self._stats.tries_total[Outcome.TOO_OLD] += 1
            error = f"{Outcome.TOO_OLD.value}: given up after {attempts} tries; the last one: {error}"
        _log.warning("delivery %s (%s): %s", delivery.id, delivery.transition, error)
        return Mark(delivery.id, state, attempts, waited, self._clock.now() + wait, error)
