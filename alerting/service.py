"""The alert role: findings from the bus to incidents in the store to deliveries.

::

    async with Store(path) as store, AlertService(bus, store, receivers, routing, clock) as service:
        await service.wait()
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from alerting.away import FINDINGS_AT_ONCE_MAX, FINDINGS_HELD_MAX, Batch, Held, Memory
from alerting.body import Presentation
from alerting.deliver import Deliverer
from alerting.delivery import Backoff
from alerting.errors import BadSetting, StoreUnavailable
from alerting.group import Scene
from alerting.heartbeat import BEAT_SECONDS, Heartbeat, check_url
from alerting.intake import FindingsIntake
from alerting.plan import Planned, Planner
from alerting.receivers import Receiver
from alerting.rehearsal import rehearsal_findings
from alerting.route import Routing
from alerting.stats import Stats
from alerting.store import Recorded, Store
from telemetry_bus.bus import AtOffset, Bus, Earliest, Record, Start, Subscription
from telemetry_bus.errors import BusError
from telemetry_bus.findings import Finding
from telemetry_bus.intake import Refusal
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic

RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)
"""Waits before the bus or the store is tried again; the last one is repeated."""
PRUNE_SECONDS = 3600.0
"""How often the store is brought back within its bounds."""

_log = logging.getLogger(__name__)


async def _drop(_refusal: Refusal) -> None:
    """Where nobody keeps dead letters, a refusal is counted and logged only."""


def _sees_all() -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class AlertOptions:
    """What may be set besides the routes.

    ``blind`` says in words what Nantucket cannot see just now; ``dead_letter`` keeps what could not be read;
    ``on_change`` is called in the event loop after each change of the store.
    """

    presentation: Presentation = field(default_factory=Presentation)
    backoff: Backoff = field(default_factory=Backoff)
    heartbeat_url: Secret[str] | None = None
    heartbeat_seconds: float = BEAT_SECONDS
    blind: Callable[[], Sequence[str]] = _sees_all
    dead_letter: Callable[[Refusal], Awaitable[None]] = _drop
    on_change: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.heartbeat_url is not None:
            check_url(self.heartbeat_url)


class AlertService:
    """Runs inside ``async with``; ``store`` is open already, ``receivers`` are opened here."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        receivers: Sequence[Receiver],
        routing: Routing,
        clock: Clock,
        options: AlertOptions | None = None,
    ) -> None:
        names = [receiver.name for receiver in receivers]
        if len(set(names)) != len(names):
            raise BadSetting("receivers", repr(sorted(names)), "a different name for each receiver")
        self._bus = bus
        self._store = store
        self._clock = clock
        self._options = AlertOptions() if options is None else options
        self._receivers = {receiver.name: receiver for receiver in receivers}
        self.stats = Stats()
        self._planner = Planner(
            routing, {receiver.name: receiver.tiers for receiver in receivers}, self._options.presentation
        )
        self._deliverer = Deliverer(
            store,
            self._receivers,
            clock,
            self.stats,
            backoff=self._options.backoff,
            on_change=self._options.on_change,
        )
        self._memory = Memory()
        self._held = Held(self._memory)
        self._intake = FindingsIntake()
        self._store_away = asyncio.Event()
        self._room = asyncio.Event()
        self._following: dict[int, int] = {}
        self._subscription: Subscription | None = None
        self._taken_records = 0
        self._taken_at_last_look = -1
        self._stack = AsyncExitStack()
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Open the receivers and begin."""
        async with AsyncExitStack() as stack:
            for receiver in self._receivers.values():
                await stack.enter_async_context(receiver)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [
                tasks.create_task(self._read(), name="alerting: read findings"),
                tasks.create_task(self._restore(), name="alerting: restore"),
                tasks.create_task(self._deliverer.run(), name="alerting: deliver"),
                tasks.create_task(self._keep_house(), name="alerting: keep house"),
            ]
            if self._options.heartbeat_url is not None:
                url, every = self._options.heartbeat_url, self._options.heartbeat_seconds
                beat = Heartbeat(url, self.blindness, self.stats, every)
                running.append(tasks.create_task(beat.run(), name="alerting: heartbeat"))
            for task in running:
                stack.callback(task.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop. What is in the outbox is sent by the next one that runs; what is being sent now, again under its id."""
        self._closing.set()
        await self._stack.aclose()

    async def wait(self) -> None:
        """Wait until the service is closed; a fault of the service comes out of its ``async with`` block."""
        await self._closing.wait()

    async def blindness(self) -> str | None:
        """Why findings would not become pages just now, or ``None`` if they would. Each look is held to the last."""
        if self._subscription is None:
            return "the findings on the bus are not being read"
        if self._held.batches:
            return f"{self._held.findings} findings wait for the store"
        try:
            await self._store.ready()
            has_all = await self._subscription.caught_up()
        except (StoreUnavailable, BusError) as error:
            return str(error)
        moved, self._taken_at_last_look = self._taken_records != self._taken_at_last_look, self._taken_records
        return None if has_all or moved else "findings lie on the bus and none has been taken since the last look"

    async def _read(self) -> None:
        self._following = await self._position()
        await self._rehearse()
        waits = _Waits()
        while True:
            try:
                async with self._bus.subscribe([Topic.FINDINGS], self._start()) as subscription:
                    self._subscription = subscription
                    async for records in subscription:
                        waits.reset()
                        await self._take(records)
            except BusError as error:
                self.stats.bus_failures_total += 1
                _log.warning("%s", error)
            finally:
                self._subscription = None
            await waits.wait()

    async def _position(self) -> dict[int, int]:
        """How far the findings have been taken. Until that is known, nothing can be read: waiting is all there is."""
        waits = _Waits()
        while True:
            try:
                return await self._store.position(Topic.FINDINGS.value)
            except StoreUnavailable as error:
                self._note_store_failure(error)
            await waits.wait()

    async def _rehearse(self) -> None:
        now = self._clock.now()
        try:
            await self._store.rehearse(
                rehearsal_findings(now), lambda scene, finding: self._planner.plan(scene, finding, now, ())
            )
        except StoreUnavailable as error:
            self._note_store_failure(error)

    def _start(self) -> Start:
        """Behind what has been taken; at first at the oldest, so that none from before the first start is lost."""
        if not self._following:
            return Earliest()
        return AtOffset(self._following.get(0, 0), self._following)

    async def _take(self, records: Sequence[Record]) -> None:
        found = self._intake.take(records)
        for refusal in found.refusals:
            await self._refuse(refusal)
        following: dict[int, int] = {}
        for record in records:
            following[record.partition] = record.offset + 1
        pieces = [
            found.findings[start : start + FINDINGS_AT_ONCE_MAX]
            for start in range(0, len(found.findings), FINDINGS_AT_ONCE_MAX)
        ] or [[]]
        for number, piece in enumerate(pieces, start=1):
            await self._record_or_hold(Batch(piece, following if number == len(pieces) else {}))
        self._following.update(following)
        self._taken_records += len(records)
        self.stats.lag_seconds = self._clock.now() - records[-1].time

    async def _refuse(self, refusal: Refusal) -> None:
        self.stats.refused_total += 1
        _log.warning("findings at offset %d: %s: %s", refusal.record.offset, refusal.reason, refusal.message)
        try:
            await self._options.dead_letter(refusal)
        except BusError as error:
            self.stats.dead_letters_lost_total += 1
            _log.warning("the dead letter of offset %d is lost: %s", refusal.record.offset, error)

    async def _record_or_hold(self, batch: Batch) -> None:
        self._held.batches.append(batch)
        if not self._store_away.is_set():
            try:
                await self._flush()
            except StoreUnavailable as error:
                self._note_store_failure(error)
                self._store_away.set()
            else:
                return
        # No await from here to the sending: the batch cannot be recorded, and its pages offered, in between.
        urgent = self._held.foresee(batch.findings, self._planner, self._clock.now(), tuple(self._options.blind()))
        self._deliverer.send_unrecorded(urgent)
        self.stats.held_findings = self._held.findings
        while self._held.findings > FINDINGS_HELD_MAX:
            self._room.clear()
            await self._room.wait()

    async def _flush(self) -> None:
        """Record what is held, oldest first. The reader does it while the store is there, else only ``_restore``."""
        while self._held.batches:
            batch, now, blind = self._held.batches[0], self._clock.now(), tuple(self._options.blind())

            def plan(scene: Scene, finding: Finding, now: float = now, blind: Sequence[str] = blind) -> Planned:
                return self._planner.plan(scene, finding, now, blind)

            recorded = await self._store.record(batch.findings, batch.following, Topic.FINDINGS.value, plan)
            self._held.batches.popleft()
            self._deliverer.offer(recorded.deliveries)
            self._learn(recorded)

    def _learn(self, recorded: Recorded) -> None:
        for change in recorded.changes:
            self._memory.learn(change)
        self.stats.findings_total += len(recorded.changes)
        self.stats.findings_again_total += recorded.duplicates
        self.stats.held_findings = self._held.findings
        self._room.set()
        if recorded.changes:
            self._options.on_change()

    async def _restore(self) -> None:
        waits = _Waits()
        while True:
            await self._store_away.wait()
            await waits.wait()
            try:
                await self._flush()
            except StoreUnavailable as error:
                self._note_store_failure(error)
                continue
            self._store_away.clear()
            self._held.forget()
            self._deliverer.wake()
            waits.reset()

    async def _keep_house(self) -> None:
        waits = _Waits()
        is_retired = False
        while True:
            try:
                if not is_retired:
                    await self._store.retire(list(self._receivers))
                    is_retired = True
                await self._store.prune()
            except StoreUnavailable as error:
                self._note_store_failure(error)
                await waits.wait()
            else:
                waits.reset()
                await asyncio.sleep(PRUNE_SECONDS)

    def _note_store_failure(self, error: StoreUnavailable) -> None:
        self.stats.store_failures_total += 1
        _log.warning("%s", error)


class _Waits:
    """Longer and longer waits, until reset."""

    def __init__(self) -> None:
        self._taken = 0

    async def wait(self) -> None:
        seconds = RETRY_SECONDS[min(self._taken, len(RETRY_SECONDS) - 1)]
        self._taken += 1
        await asyncio.sleep(seconds)

    def reset(self) -> None:
        self._taken = 0
