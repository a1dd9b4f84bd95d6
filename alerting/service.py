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

from alerting.away import FINDINGS_AT_ONCE_MAX, FINDINGS_HELD_MAX, Batch, Foresight, Held, Memory
from alerting.body import Presentation
from alerting.deliver import Deliverer
from alerting.delivery import Backoff
from alerting.errors import BadSetting, StoreUnavailable
from alerting.group import Scene
from alerting.heartbeat import BEAT_SECONDS, Heartbeat, check_url
from alerting.intake import FindingsIntake
from alerting.plan import Planned, Planner
from alerting.receipts import Receipts
from alerting.receivers import Receiver
from alerting.rehearsal import rehearsal_findings
from alerting.route import Routing
from alerting.stats import Stats
from alerting.store import Plan, Position, Recorded, Store
from alerting.unrecorded import WINDOW_SECONDS, read_unrecorded
from alerting.waits import Waits
from telemetry_bus.bus import AtOffset, Bus, Earliest, Record, Start, Subscription
from telemetry_bus.errors import BusError
from telemetry_bus.findings import Finding
from telemetry_bus.intake import Refusal
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic

START_TRIES = 3
"""How often the store is asked for its position (under 5 s) before critical findings are paged without it."""
PRUNE_SECONDS = 3600.0
"""How often the store is brought back within its bounds."""

_log = logging.getLogger(__name__)


async def _drop(_refusal: Refusal) -> None:
    """Where nobody keeps dead letters, a refusal is counted and logged only."""


def _sees_all() -> Sequence[str]:
    return ()


async def _all_work() -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class AlertOptions:
    """What may be set besides the routes.

    ``blind`` says in words what Nantucket cannot see besides what its own incidents say; ``dead_letter`` keeps what
    could not be read; ``on_change`` is called in the event loop after each change of the store. ``others_blind`` says
    why nobody would find anything to page about (``None``: the detectors work): without it no heartbeat is sent.
    """

    presentation: Presentation = field(default_factory=Presentation)
    backoff: Backoff = field(default_factory=Backoff)
    heartbeat_url: Secret[str] | None = None
    heartbeat_seconds: float = BEAT_SECONDS
    blind: Callable[[], Sequence[str]] = _sees_all
    dead_letter: Callable[[Refusal], Awaitable[None]] = _drop
    on_change: Callable[[], None] = lambda: None
    others_blind: Callable[[], Awaitable[str | None]] = _all_work

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
            routing,
            {receiver.name: receiver.tiers for receiver in receivers},
            self._options.presentation,
            Receipts(self._receivers),
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
        self._foresight = Foresight(self._memory)
        self._held = Held()
        self._intake = FindingsIntake()
        self._store_away = asyncio.Event()
        self._room = asyncio.Event()
        self._log: str | None = None
        self._following: dict[int, int] = {}
        self._is_unrecorded = False
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
        if self._is_unrecorded:
            return "the store has not answered since the start: critical findings are paged, nothing is recorded"
        if self._subscription is None:
            return "the findings on the bus are not being read"
        if self._held.batches:
            return f"{self._held.findings} findings wait for the store"
        try:
            if (why := await self._options.others_blind()) is not None:
                return why
            await self._store.ready()
            if await self._is_other_log(await self._bus.identity()):
                return "the bus holds another log than the one that is being read: start the alert role anew"
            has_all = await self._subscription.caught_up()
        except (StoreUnavailable, BusError) as error:
            return str(error)
        moved, self._taken_at_last_look = self._taken_records != self._taken_at_last_look, self._taken_records
        return None if has_all or moved else "findings lie on the bus and none has been taken since the last look"

    async def _read(self) -> None:
        position = await self._position()
        self._log, self._following = position.log, dict(position.following)
        await self._rehearse()
        await self._look()
        waits = Waits()
        while True:
            try:
                async with self._bus.subscribe([Topic.FINDINGS], await self._start()) as subscription:
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

    async def _position(self) -> Position:
        """How far the findings have been taken. Until that is known, critical ones are paged without the store."""
        waits = Waits()
        position = await self._asked_position(waits, START_TRIES)
        if position is not None:
            return position
        window = WINDOW_SECONDS / 60
        _log.error(
            "the alert store %s does not answer, so nothing is recorded. Critical findings of the last %.0f minutes "
            "and new ones are paged without it; everything is recorded when it answers. If it is damaged, move it "
            "away: a new one is made, and the findings on the bus are read again.",
            self._store.path,
            window,
        )
        self._is_unrecorded = True
        since = self._clock.now() - WINDOW_SECONDS
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read_unrecorded(self._bus, since, self.stats, self._page_unrecorded))
            while position is None:
                position = await self._asked_position(waits, START_TRIES)
            reading.cancel()
        self._is_unrecorded = False
        self._foresight.forget()
        _log.warning("the alert store %s answers: all findings since its position are read again", self._store.path)
        return position

    async def _asked_position(self, waits: Waits, tries: int) -> Position | None:
        for _ in range(tries):
            try:
                return await self._store.position(Topic.FINDINGS.value)
            except StoreUnavailable as error:
                self._note_store_failure(error)
            await waits.wait()
        return None

    def _page_unrecorded(self, findings: Sequence[Finding]) -> None:
        urgent = self._foresight.pages(findings, self._planner, self._clock.now(), tuple(self._options.blind()))
        self._deliverer.send_unrecorded(urgent)

    async def _rehearse(self) -> None:
        now = self._clock.now()
        try:
            await self._store.rehearse(
                rehearsal_findings(now), lambda scene, finding: self._planner.plan(scene, finding, now, ())
            )
        except StoreUnavailable as error:
            self._note_store_failure(error)

    async def _look(self) -> None:
        """Know from the start what an earlier process was told of Nantucket's own sight."""
        try:
            self._memory.sight = await self._store.sight()
        except StoreUnavailable as error:
            self._note_store_failure(error)

    async def _start(self) -> Start:
        """Behind what has been taken; at the oldest at first, and in a log that is not the one that was read.

        What is read again does nothing, since the store remembers the ids of findings.
        """
        log = await self._bus.identity()
        if self._following and await self._is_other_log(log):
            _log.warning(
                "the bus %s holds another log than the one whose findings were taken (%s up to %s; now it is %s): "
                "it was made anew or put back, and is read from its oldest finding on",
                self._bus.url,
                self._log,
                self._following,
                log,
            )
            self._following = {}
        self._log = log
        return AtOffset(partitions=dict(self._following)) if self._following else Earliest()

    async def _is_other_log(self, log: str) -> bool:
        """Whether ``log``, which the bus holds now, is not the one that was read, or has lost what was read of it."""
        if log != self._log:
            return True
        ends = await self._bus.ends(Topic.FINDINGS)
        return any(offset > ends.get(partition, 0) for partition, offset in self._following.items())

    async def _take(self, records: Sequence[Record]) -> None:
        log = self._log
        assert log is not None, "records are only read from a log that is known"
        found = self._intake.take(records)
        following: dict[int, int] = {}
        for record in records:
            following[record.partition] = record.offset + 1
        pieces = [
            found.findings[start : start + FINDINGS_AT_ONCE_MAX]
            for start in range(0, len(found.findings), FINDINGS_AT_ONCE_MAX)
        ] or [[]]
        for number, piece in enumerate(pieces, start=1):
            await self._record_or_hold(Batch(piece, following if number == len(pieces) else {}, log))
        self._following.update(following)
        # Behind the position: a process that dies here has one dead letter less, and the next one none twice.
        for refusal in found.refusals:
            await self._refuse(refusal)
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
        self._page_unrecorded(batch.findings)
        self.stats.held_findings = self._held.findings
        while self._held.findings > FINDINGS_HELD_MAX:
            self._room.clear()
            await self._room.wait()

    async def _flush(self) -> None:
        """Record what is held, oldest first. The reader does it while the store is there, else only ``_restore``."""
        while self._held.batches:
            batch = self._held.batches[0]
            position = Position(batch.log, batch.following)
            recorded = await self._store.record(batch.findings, position, Topic.FINDINGS.value, self._plan())
            self._held.batches.popleft()
            self._deliverer.offer(recorded.deliveries)
            self._learn(recorded)

    def _plan(self) -> Plan:
        """How the findings of one transaction are planned: each sees what those before it have shown."""
        now, blind, sight = self._clock.now(), tuple(self._options.blind()), self._memory.sight

        def plan(scene: Scene, finding: Finding) -> Planned:
            nonlocal sight
            planned = self._planner.plan(scene, finding, now, blind, sight)
            sight = sight.after(planned.change)
            return planned

        return plan

    def _learn(self, recorded: Recorded) -> None:
        for change in recorded.changes:
            self._memory.learn(change)
        self.stats.findings_total += len(recorded.changes)
        self.stats.findings_again_total += recorded.duplicates
        for outcome, count in recorded.receipts.items():
            self.stats.receipts_total[outcome] += count
        self.stats.held_findings = self._held.findings
        self._room.set()
        if recorded.changes:
            self._options.on_change()

    async def _restore(self) -> None:
        waits = Waits()
        while True:
            await self._store_away.wait()
            await waits.wait()
            try:
                await self._flush()
            except StoreUnavailable as error:
                self._note_store_failure(error)
                continue
            self._store_away.clear()
            self._foresight.forget()
            self._deliverer.wake()
            waits.reset()

    async def _keep_house(self) -> None:
        waits = Waits()
        is_retired = False
        while True:
            try:
                if not is_retired:
                    await self._store.retire(list(self._receivers))
                    is_retired = True
                while await self._store.prune():
                    pass
            except StoreUnavailable as error:
                self._note_store_failure(error)
                await waits.wait()
            else:
                waits.reset()
                await asyncio.sleep(PRUNE_SECONDS)

    def _note_store_failure(self, error: StoreUnavailable) -> None:
        self.stats.store_failures_total += 1
        _log.warning("%s", error)
