"""The worker that empties the outbox.

A delivery is handed to it the moment its transaction is durable; what it is not handed (retries, what an earlier
process left) it finds in the outbox. Deliveries of a lane go in order, one at a time; lanes and receivers do not wait
for each other. Killed between sending and marking it sends again, under the same id.
"""

import asyncio
import contextlib
import heapq
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from alerting.attempt import Courier
from alerting.delivery import Backoff, Delivery, DeliveryState, Mark
from alerting.errors import StoreUnavailable
from alerting.group import Turn
from alerting.receivers import Receiver
from alerting.stats import Stats
from alerting.store import Store
from telemetry_bus.runtime.clock import Clock

TRIES_AT_ONCE = 8
"""For each receiver: one that answers in 100 ms takes 80 deliveries a second, one that hangs holds eight tasks."""
DIRECT_MAX = 10_000
"""Deliveries that wait to be sent although the store is away; some 3 KB each: 30 MB. What is beyond is counted, and
sent when the store is back."""
MARKS_MAX = 100_000
"""What came of tries and is not written yet; some 300 bytes each: 30 MB. Beyond that the oldest is forgotten and
counted: when the store is back that delivery is sent again, under its id."""
POLL_SECONDS = 1.0
"""How often the outbox is looked at without being called: for what another process left there."""

_log = logging.getLogger(__name__)


class Deliverer:
    """Sends what is in the outbox of ``store`` to ``receivers`` (open ones, by name)."""

    def __init__(
        self,
        store: Store,
        receivers: Mapping[str, Receiver],
        clock: Clock,
        stats: Stats,
        *,
        backoff: Backoff,
        on_change: Callable[[], None],
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._receivers = receivers
        self._clock = clock
        self._stats = stats
        self._backoff = backoff
        self._on_change = on_change
        self._courier = Courier(receivers, clock, stats, backoff, chance)
        self._wake = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._busy: dict[str, set[str]] = {name: set() for name in receivers}
        self._finished: set[str] = set()
        """Deliveries tried since the outbox was last asked: its answer may be from before."""
        self._retry_times: list[float] = []
        """A heap of the times at which the outbox has something to try again."""
        self._direct: dict[str, Delivery] = {}
        """Deliveries that were sent before they were recorded, until they are taken or dead; oldest first."""
        self._unmarked: dict[str, Mark] = {}
        """What came of tries and is not written yet: written together, many to a transaction."""
        self._measured_at = -math.inf

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                self._wake.clear()
                wait_seconds = await self._pump()
                # Not wait_for: before Python 3.12 it can swallow the cancellation of whoever waits.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_seconds):
                        await self._wake.wait()

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """Send what has just become durable. Only a first word goes without a look at what is before it in its lane."""
        for delivery in deliveries:
            is_first = delivery.transition == Turn.FIRING.value and delivery.id not in self._direct
            if not (is_first and delivery.id not in self._unmarked and self._start(delivery)):
                self._wake.set()

    def send_unrecorded(self, deliveries: Iterable[Delivery]) -> None:
        """Send although the store is away; what comes of it is written when the store is back."""
        for delivery in deliveries:
            if delivery.id in self._direct or delivery.id in self._unmarked:
                continue
            if len(self._direct) >= DIRECT_MAX:
                self._stats.direct_left_out_total += 1
                _log.error("delivery %s waits for the store: %d others wait to be sent", delivery.id, DIRECT_MAX)
                continue
            self._stats.direct_total += 1
            self._direct[delivery.id] = delivery
        self._pump_direct()

    def wake(self) -> None:
        """Look at the outbox now."""
        self._wake.set()

    async def _pump(self) -> float:
        """Start all that is due and return for how long to wait then."""
        now = self._clock.now()
        self._pump_direct()
        try:
            await self._write_marks()
            for name in self._receivers:
                await self._pump_outbox(name, now)
            await self._measure()
        except StoreUnavailable as error:
            self._stats.store_failures_total += 1
            _log.warning("%s", error)
        while self._retry_times and self._retry_times[0] <= now:
            heapq.heappop(self._retry_times)
        return min(POLL_SECONDS, self._retry_times[0] - now) if self._retry_times else POLL_SECONDS

    def _pump_direct(self) -> None:
        now, lanes = self._clock.now(), set()
        for delivery in list(self._direct.values()):
            if delivery.lane not in lanes and delivery.next_attempt_time <= now:
                self._start(delivery)
            lanes.add(delivery.lane)

    async def _pump_outbox(self, name: str, now: float) -> None:
        busy = self._busy[name]
        if len(busy) >= TRIES_AT_ONCE:
            return
        self._finished.clear()
        due = await self._store.due(name, now, TRIES_AT_ONCE + len(busy), self._backoff.longest_seconds)
        for delivery in due:
            mark = self._unmarked.get(delivery.id)
            waits = mark is not None and (mark.state is not DeliveryState.PENDING or mark.next_attempt_time > now)
            if not waits and delivery.id not in self._direct and delivery.id not in self._finished:
                self._start(delivery)

    def _start(self, delivery: Delivery) -> bool:
        busy = self._busy[delivery.receiver]
        if self._tasks is None or delivery.incident_id in busy or len(busy) >= TRIES_AT_ONCE:
            return False
        busy.add(delivery.incident_id)
        self._tasks.create_task(self._try(delivery), name=f"deliver {delivery.id}")
        return True

    async def _try(self, delivery: Delivery) -> None:
        mark = await self._courier.attempt(delivery)
        self._note(delivery, mark)
        self._finished.add(delivery.id)
        self._busy[delivery.receiver].discard(delivery.incident_id)
        self._pump_direct()
        self._wake.set()

    def _note(self, delivery: Delivery, mark: Mark) -> None:
        self._unmarked[delivery.id] = mark
        if len(self._unmarked) > MARKS_MAX:
            del self._unmarked[next(iter(self._unmarked))]
            self._stats.marks_forgotten_total += 1
        if mark.state is not DeliveryState.PENDING:
            self._direct.pop(delivery.id, None)
            return
        heapq.heappush(self._retry_times, mark.next_attempt_time)
        if delivery.id in self._direct:
            self._direct[delivery.id] = replace(
                delivery,
                attempts=mark.attempts,
                waited_seconds=mark.waited_seconds,
                next_attempt_time=mark.next_attempt_time,
            )

    async def _write_marks(self) -> None:
        """Write what is known; what the outbox does not have yet is kept until it has."""
        marks = dict(self._unmarked)
        if not marks:
            return
        absent = set(await self._store.mark(list(marks.values())))
        for identity in marks.keys() - absent:
            if self._unmarked.get(identity) is marks[identity]:
                del self._unmarked[identity]
        self._on_change()

    async def _measure(self) -> None:
        if self._clock.monotonic() - self._measured_at < POLL_SECONDS:
            return
        self._measured_at = self._clock.monotonic()
        standing = await self._store.standing()
        self._stats.open_incidents = dict(standing.open_incidents)
        self._stats.deliveries = dict(standing.deliveries)
        oldest = standing.oldest_pending_time
        self._stats.oldest_undelivered_seconds = None if oldest is None else max(0.0, self._clock.now() - oldest)
