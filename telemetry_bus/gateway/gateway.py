"""The gateway: frames of many nodes in, few large ones up, and an answer when they are durable there.

It keeps nothing. What was not acknowledged is still with its sender, so a gateway may be killed at any instant, and any
other one may take its place. It is an outlet itself: whatever comes in by another way than a link uses ``publish``.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from telemetry_bus.dead_letter import PAYLOAD_BYTES_MAX, DeadLetters
from telemetry_bus.errors import BusUnavailable, FrameError, OutletFull
from telemetry_bus.frames import decode
from telemetry_bus.gateway.counters import GatewayCounters, ReportOutcome
from telemetry_bus.gateway.entry import LANES, Answering, Arrival, Entry, checked
from telemetry_bus.gateway.grants import BACKLOG_BYTES_PER_SECOND, Grants
from telemetry_bus.gateway.merge import Batch, MergeOptions
from telemetry_bus.gateway.room import Room
from telemetry_bus.gateway.upstream import Upstream
from telemetry_bus.gateway.wire import Answered
from telemetry_bus.outlet import Outlet, Report
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.topics import TOPIC_SCHEMAS, Topic

IN_FLIGHT_BYTES_MAX = 256 * 1024 * 1024
"""Three seconds of what the top of Leviathan's tree receives (85 MB a second)."""
REPORT_SECONDS = 0.5
"""How long a report tries the bus before a gateway that can page does: a page is to go out within a second."""
REPORT_SECONDS_MAX = 18.0
"""How long it takes where nobody here can page, or the receivers answer slowly; below the sender's own patience."""
REPORTS_MAX = 256
"""Under way at once: an outage in which every node of a rack finds something, twice over."""
LETTERS_WAITING_MAX = 64
"""Refused frames that wait to be dead-lettered, each cut to 64 KiB: 4 MiB. What goes beyond is counted only."""
FULL_SECONDS = 1.0
"""After so long whoever was put off may try again; what is under way now will be answered by then."""
AWAY_SECONDS = 1.0

NEVER_CRITICAL = frozenset({Topic.GPU.value, Topic.LINKS.value, Topic.METRICS.value, Topic.BACKLOG.value})
"""Small frames of these topics are looked at when they are merged, one after the other: a frame that is decoded alone,
every 16 ms, costs 340 us, and one of sixteen in a row 140 (a node's 8 GPUs; measured)."""

Pager = Callable[[bytes], Awaitable[Sequence[str]]]
"""Pages the findings of an encoded ``finding/1`` frame and gives the receivers' receipts (none: nobody took it)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How a gateway merges, and what it lets in."""

    name: str = "gateway"
    """Under which it makes frames of its own (dead letters)."""
    group: str | None = None
    """The partition key of the frames that come straight from nodes, which can then be merged; default: each one's."""
    lanes: int = LANES
    """Into how many lanes the groups of gateways below go; 1 above a log of one partition, where all can be merged."""
    merging: MergeOptions = field(default_factory=MergeOptions)
    in_flight_bytes_max: int = IN_FLIGHT_BYTES_MAX
    backlog_bytes_per_second: float = BACKLOG_BYTES_PER_SECOND
    report_seconds: float = REPORT_SECONDS


class Gateway:
    """The service over an ``upstream`` that somebody else opens and closes. Use it with ``async with``."""

    def __init__(self, upstream: Outlet, clock: Clock, options: GatewayOptions, pager: Pager | None = None) -> None:
        self.url = upstream.url
        self.options, self.counters = options, GatewayCounters()
        self.letters = DeadLetters(upstream, clock, f"{options.name}/gateway.dead")
        self.grants = Grants(options.backlog_bytes_per_second)
        self.room = Room(options.in_flight_bytes_max)
        self._outlet, self._clock, self._pager = upstream, clock, pager
        self._merger = options.merging.build()
        self._upstream = Upstream(upstream, clock, self.counters, self._settle)
        self._letters: deque[tuple[str, FrameError, bytes, int]] = deque()
        self._something_waits, self._letter_waits = asyncio.Event(), asyncio.Event()
        self._unread: list[Arrival] = []
        self._unread_bytes = 0
        self._reports = 0
        self._stack = AsyncExitStack()
        self._tasks: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Begin to pass frames on."""
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        for work in (self._merge_in_time(), self._write_letters()):
            self._stack.callback(self._tasks.create_task(work).cancel)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop. Whoever wants answers for what is under way calls :meth:`drain` first."""
        await self._stack.aclose()  # not told of an error in the block, which would come out in a group
        self._tasks = None

    @property
    def backlog_bytes_per_second(self) -> float:
        """What all who send backlog through here may send together."""
        return min(self.options.backlog_bytes_per_second, self._outlet.backlog_bytes_per_second)

    def away(self) -> str | None:
        """Why frames are put off just now; ``None`` while they are taken."""
        return self._upstream.away()

    def accept(self, owner: Answering, id_: int, topic: str, key: str, payload: bytes) -> None:
        """Take a frame: ``owner`` is told what became of it, now or once it is durable upstream."""
        try:
            self._let_in(owner, topic, len(payload))
        except BusUnavailable as error:
            self.counters.put_off[Answered.FULL if isinstance(error, OutletFull) else Answered.UNAVAILABLE] += 1
            owner.not_taken(id_, error)
            return
        self.room.take(len(payload))
        arrival = Arrival(owner, id_, topic, key, payload, self._clock.monotonic())
        merging = self.options.merging
        if topic in NEVER_CRITICAL and merging.seconds > 0 and len(payload) < merging.large_bytes:
            self._unread.append(arrival)
            self._unread_bytes += len(payload)
        else:
            self._read_all()  # what came before it goes before it
            self._read(arrival)
        if self._unread_bytes >= merging.bytes_wanted:
            self._read_all()
        self._something_waits.set()

    def gone(self, owner: Answering) -> None:
        """``owner`` has hung up: its last word goes up at once, and its share of the pace to the others."""
        self.grants.left(owner)
        self._read_all()
        self._send_up(self._merger.last_word(owner))

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Pass frames on, as a link's are; durable upstream when it returns. Raises as every outlet does."""
        await self.take(topic.value, payloads, key)

    async def take(self, topic: str, payloads: Sequence[bytes], key: str = "") -> None:
        """Pass on what others call frames of ``topic`` (none: the live one of their schema), whatever they are."""
        asker = _Asker(asyncio.get_running_loop())
        try:
            for number, payload in enumerate(payloads):
                self.accept(asker, number, topic, key, payload)
            await asker.answered(len(payloads))
        finally:
            self.grants.left(asker)

    async def report(self, payload: bytes) -> Report:
        """Publish findings upstream, or have them paged while it is away."""
        if self._reports >= REPORTS_MAX:
            raise OutletFull(self.url, f"{REPORTS_MAX} reports are under way", FULL_SECONDS)
        self._reports += 1
        outcome = ReportOutcome.NOT_TAKEN
        try:
            decode(payload, TOPIC_SCHEMAS[Topic.FINDINGS])
            report = await self._reported(payload)
            outcome = ReportOutcome.PUBLISHED if report.published else ReportOutcome.PAGED
        except FrameError as error:
            self.refuse(Topic.FINDINGS.value, error, payload)
            raise
        finally:
            self._reports -= 1
            self.counters.reports[outcome] += 1
        return report

    def refuse(self, topic: str, error: FrameError, payload: bytes, size: int | None = None) -> None:
        """Count what is refused for good, and keep its beginning; it had ``size`` bytes if ``payload`` is not all."""
        self.counters.refused[error.reason] += 1
        if len(self._letters) < LETTERS_WAITING_MAX:
            self._letters.append((topic, error, payload[:PAYLOAD_BYTES_MAX], len(payload) if size is None else size))
            self._letter_waits.set()
        else:
            self.letters.only_counted += 1

    async def drain(self, seconds: float) -> None:
        """Send up all that waits, and wait until it is answered, for ``seconds`` at most."""
        self._read_all()
        self._send_up(self._merger.everything())
        try:
            async with asyncio.timeout(seconds):
                await self._upstream.idle()
        except TimeoutError:
            _log.warning("stopping with frames under way: their senders will send them again")

    def _let_in(self, owner: Answering, topic: str, size: int) -> None:
        """Raise why a frame is put off, if it is, without a look at it."""
        if (why := self._upstream.away()) is not None:
            raise BusUnavailable(self.url, "take frames", why)
        if self.room.used and self.room.used + size > self.room.bytes_max:
            message = f"{self.room.used} bytes are under way, at most {self.room.bytes_max}"
            raise OutletFull(self.url, message, FULL_SECONDS)
        if topic == Topic.BACKLOG:
            self.grants.bytes_per_second = self.backlog_bytes_per_second
            if wait := self.grants.take(owner, size, self._clock.monotonic()):
                raise OutletFull(self.url, "the backlog comes faster than was granted", wait)
        if topic == Topic.DEAD_LETTER and not self.letters.has_room():
            raise OutletFull(self.url, "no more dead letters are taken in this minute", 60.0)

    def _read_all(self) -> None:
        unread, self._unread, self._unread_bytes = self._unread, [], 0
        for arrival in unread:
            self._read(arrival)

    def _read(self, arrival: Arrival) -> None:
        payload = arrival.payload
        try:
            topic, key, frame = checked(arrival.topic, arrival.key, payload, self.options.group, self.options.lanes)
        except FrameError as error:
            self.room.give_back(len(payload))
            self.refuse(arrival.topic, error, payload)
            arrival.owner.not_taken(arrival.id, error)
            return
        self.counters.frames_in[topic] += 1
        self.counters.rows_in[topic] += frame.rows
        self.counters.bytes_in += len(payload)
        self._send_up(self._merger.add(Entry(topic, key, frame, payload, arrival.owner, arrival.id), arrival.at))

    def _settle(self, entry: Entry, error: Exception | None) -> None:
        self.room.give_back(len(entry.payload))
        if error is None:
            entry.owner.durable(entry.id)
            return
        if isinstance(error, FrameError):
            self.refuse(entry.topic.value, error, entry.payload)
        else:
            self.counters.put_off[Answered.FULL if isinstance(error, OutletFull) else Answered.UNAVAILABLE] += 1
        entry.owner.not_taken(entry.id, error)

    def _send_up(self, batches: Sequence[Batch]) -> None:
        assert self._tasks is not None, "use it inside 'async with'"
        for batch in batches:
            self._upstream.submit(batch, self._tasks)

    async def _merge_in_time(self) -> None:
        while True:
            await self._something_waits.wait()
            self._something_waits.clear()
            while (due := self._next_due()) is not None:
                await asyncio.sleep(max(0.0, due - self._clock.monotonic()))
                self._read_all()
                self._send_up(self._merger.due(self._clock.monotonic()))

    def _next_due(self) -> float | None:
        unread = self._unread[0].at + self.options.merging.seconds if self._unread else None
        waits = self._merger.next_due()
        return waits if unread is None else unread if waits is None else min(unread, waits)

    async def _write_letters(self) -> None:
        while True:
            await self._letter_waits.wait()
            self._letter_waits.clear()
            while self._letters:
                topic, error, payload, size = self._letters.popleft()
                await self.letters.keep(topic, None, error.reason.value, str(error), payload, size)

    async def _reported(self, payload: bytes) -> Report:
        why: object = self._upstream.away()
        if why is None or self._pager is None:  # a gateway above may be able to page though its bus is away
            seconds = REPORT_SECONDS_MAX if self._pager is None else self.options.report_seconds
            try:
                async with asyncio.timeout(seconds):
                    return await self._outlet.report(payload)
            except TimeoutError:
                why = f"no answer within {seconds:g} s"
            except BusUnavailable as error:
                why = error
        if self._pager is None:
            raise BusUnavailable(self.url, "take a report, and no receiver is configured here", why)
        return Report(published=False, receipts=await self._paged(self._pager, payload, why))

    async def _paged(self, pager: Pager, payload: bytes, why: object) -> tuple[str, ...]:
        try:
            async with asyncio.timeout(REPORT_SECONDS_MAX):
                receipts = tuple(await pager(payload))
        except TimeoutError as error:
            raise BusUnavailable(self.url, "take a report, nor a receiver", error) from error
        except (FrameError, BusUnavailable):
            raise
        except Exception as error:
            _log.exception("the pager failed; the report is put off, and the links go on")
            raise BusUnavailable(self.url, "take a report, and its pager failed", error) from error
        if not receipts:
            raise BusUnavailable(self.url, "take a report, and no receiver took it", why)
        return receipts


class _Asker:
    """Waits for the answers to frames that came by another way than a link."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._changed = asyncio.Event()
        self._answered = 0
        self._error: Exception | None = None

    def durable(self, id_: int) -> None:
        """One more is durable."""
        self._answered += 1
        self._changed.set()

    def not_taken(self, id_: int, error: Exception) -> None:
        """One was not taken; the first error is told."""
        self._error = self._error or error
        self.durable(id_)

    async def answered(self, wanted: int) -> None:
        """Wait for ``wanted`` answers; raises the first error."""
        while self._answered < wanted:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
