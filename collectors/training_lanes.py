"""From the SDK's messages to frames on the bus: group commit for each schema, and the memory that it may take.

A message keeps its own run in the frame's manifest (source ``job/attempt/rank/stream``, the SDK's boot and seq), so
that the reader's ledger sees every loss and every repetition from the SDK on, whatever happens to the collector
between.
"""

import asyncio
import logging
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from collectors.errors import Refused, WireRefusal
from collectors.training_memory import ByteBudget
from collectors.training_wire import STREAM_SCHEMAS, STREAM_TOPICS, Hello, RowsMessage, Stream
from telemetry_bus.errors import FrameError, InvalidPayload
from telemetry_bus.frames import Frame, Run, batch_of, encode
from telemetry_bus.publisher import until_durable
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import SCHEMAS
from telemetry_bus.topics import Topic

LOGGER = logging.getLogger(__name__)
FRAME_ROWS_MAX = 4_096
"""Messages are merged until a frame has this many rows (the last one may add 1,024): a commit that stays short."""
FRAME_BYTES_WANTED = 12 * 1024 * 1024
"""Messages are merged while their frame stays below this, by :func:`bytes_in_frame`, which errs upwards. With every
fixed column (280 bytes) and the longest identity (1.2 KiB) 4,096 rows have 6 MiB; texts come on top. One message has
at most 1,024 such rows and 256 KiB of JSON, in which a number may grow fourfold when it is written again: under 3 MiB,
so that nothing that was checked comes near the 16 MiB of a frame."""
CELL_BYTES = 9
"""At most: eight of a number or four of a text's offset, and a bit that says whether it is there."""
RUN_BYTES = 1_024
"""A run in the manifest (256 bytes of source at most and 38 more), with room for the frame's own head."""
STREAMS_MAX = 16_384
"""Streams (three for each SDK process) whose last number is remembered. What is forgotten and repeated is dropped at
the reader's ledger."""
SEQ_AHEAD_MAX = 1_024
"""How far a stream's number may jump: beyond messages that were refused before their number could be read. Nothing else
makes an SDK's numbers jump."""

Publish = Callable[[Topic, Frame], Awaitable[object]]
"""Returns once a frame is durable (on the bus, or in this node's spool); raises ``BusUnavailable`` to be tried again,
and ``FrameError`` or ``InvalidPayload`` for what nobody would ever take."""


class Answering(Protocol):
    """Who is told what became of a message."""

    def acknowledge(self, stream: Stream, seq: int) -> None:
        """Say that this message is durable and needs not be sent again."""
        ...

    def refuse(self, stream: Stream, seq: int, refusal: WireRefusal) -> None:
        """Say that this message cannot be published and must not be sent again."""
        ...


@dataclass(slots=True)
class Counters:
    """What the listener has seen since it was made. All but ``connections_now`` only grow."""

    connections_now: int = 0
    connections: int = 0
    rows: Counter[Stream] = field(default_factory=lambda: Counter(dict.fromkeys(Stream, 0)))
    """Rows that are durable."""
    messages: Counter[Stream] = field(default_factory=lambda: Counter(dict.fromkeys(Stream, 0)))
    frames: Counter[Stream] = field(default_factory=lambda: Counter(dict.fromkeys(Stream, 0)))
    refused: Counter[Refused] = field(default_factory=lambda: Counter(dict.fromkeys(Refused, 0)))
    duplicates: int = 0
    """Messages that came again after a reconnect and were not published again."""
    rows_dropped_by_sdks: int = 0
    """Rows that never reached a collector, as the SDKs say."""
    unknown_fields: int = 0
    """Cells of columns that this version does not know: a newer SDK."""
    publish_retries: int = 0


@dataclass(slots=True)
class Message:
    """One rows message on its way to the bus. ``sender_now`` says what the SDK's clock shows now, in UTC seconds."""

    hello: Hello
    rows: RowsMessage
    size: int
    sender_now: Callable[[], float]
    waiting: list[Answering]
    frame_bytes: int = 0
    """What it adds to a frame, at most; known once its rows are filled."""


class Lane:
    """One schema's way to the bus. Everything that came during a publish goes with the next, in one frame."""

    def __init__(self, stream: Stream, publish: Publish, budget: ByteBudget, counters: Counters, clock: Clock) -> None:
        self.stream = stream
        self._clock = clock
        self._publish = publish
        self._budget = budget
        self._counters = counters
        self._queue: deque[Message] = deque()
        self._under_way: dict[tuple[str, int], Message] = {}
        self._last: OrderedDict[str, int] = OrderedDict()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self, hello: Hello, rows: RowsMessage, unread: int) -> None:
        """Refuse a number too far ahead of the last one: the reader would count it as lost frames.

        ``unread`` is how many messages of this connection were refused before their number could be read.
        """
        last = self._last.get(_key(hello, self.stream))
        if last is not None and rows.seq > (most := last + SEQ_AHEAD_MAX + unread):
            raise WireRefusal(Refused.BAD_SEQ, f"seq: expected at most {most} after {last}, found {rows.seq}")

    def passed_over(self, hello: Hello, seq: int) -> None:
        """Note the number of a message that was refused: the next one is no jump."""
        key = _key(hello, self.stream)
        last = self._last.get(key)
        if last is not None and last < seq <= last + SEQ_AHEAD_MAX:
            self._last[key] = seq

    async def accept(self, message: Message, region: str | None, node: str) -> None:
        """Take a message once: a repetition is acknowledged with the first one, or at once where that is durable."""
        _fill(message, region, node)
        key = _key(message.hello, self.stream)
        seq = message.rows.seq
        if (first := self._under_way.get((key, seq))) is not None:
            self._counters.duplicates += 1
            first.waiting.extend(message.waiting)
            await self._budget.give_back(message.size)
            return
        if seq <= self._last.get(key, -1):
            self._counters.duplicates += 1
            await self._budget.give_back(message.size)
            _acknowledge(message)
            return
        self._last[key] = seq
        self._last.move_to_end(key)
        while len(self._last) > STREAMS_MAX:
            self._last.popitem(last=False)
        self._under_way[(key, seq)] = message
        self._queue.append(message)
        self._idle.clear()
        self._arrived.set()

    @property
    def waiting(self) -> int:
        """Messages that wait for the publish that is running now."""
        return len(self._queue)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    async def run(self) -> None:
        """Publish for ever. What cannot be a frame is refused; it ends nothing.

        Jobs are published apart, at the same time: a frame's key is its job, which keeps each job in order.
        """
        while True:
            await self._arrived.wait()
            async with asyncio.TaskGroup() as jobs:
                for messages in _by_job(self._take()):
                    jobs.create_task(self._publish_all(messages))
            if not self._queue:
                self._arrived.clear()
                self._idle.set()

    async def _publish_all(self, messages: Sequence[Message]) -> None:
        groups = [messages]
        while groups:
            group = groups.pop()
            unframeable = await self._publish_durably(group)
            if unframeable is None:
                await self._settle(group)
            elif len(group) == 1:
                await self._refuse(group[0], unframeable)
            else:
                half = len(group) // 2
                groups += [group[half:], group[:half]]

    async def _settle(self, messages: Sequence[Message]) -> None:
        self._counters.frames[self.stream] += 1
        for message in messages:
            del self._under_way[(_key(message.hello, self.stream), message.rows.seq)]
            self._counters.messages[self.stream] += 1
            self._counters.rows[self.stream] += len(message.rows.rows)
            self._counters.rows_dropped_by_sdks += message.rows.dropped
            _acknowledge(message)
        await self._budget.give_back(sum(message.size for message in messages))

    async def _refuse(self, message: Message, unframeable: Exception) -> None:
        LOGGER.error("rows of job %s cannot be a frame: %s", message.hello.job, unframeable)
        del self._under_way[(_key(message.hello, self.stream), message.rows.seq)]
        self._counters.refused[Refused.UNFRAMEABLE] += 1
        expected = f"expected {len(message.rows.rows)} rows that a frame of the bus can hold"
        refusal = WireRefusal(Refused.UNFRAMEABLE, f"the message: {expected}, found {str(unframeable)[:300]}")
        for connection in message.waiting:
            connection.refuse(self.stream, message.rows.seq, refusal)
        await self._budget.give_back(message.size)

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        rows = size = 0
        while self._queue and rows < FRAME_ROWS_MAX:
            size += self._queue[0].frame_bytes
            if messages and size > FRAME_BYTES_WANTED:
                break
            messages.append(self._queue.popleft())
            rows += len(messages[-1].rows.rows)
        return messages

    async def _publish_durably(self, messages: Sequence[Message]) -> Exception | None:
        """Publish, however long the bus is away; return what makes these rows no frame, if they are none."""
        try:
            batch = batch_of(STREAM_SCHEMAS[self.stream], columns_of(self.stream, messages))
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's own are among them
            return error
        frame = Frame(STREAM_SCHEMAS[self.stream], batch, tuple(_run_of(message) for message in messages))
        try:
            send = partial(self._publish, STREAM_TOPICS[self.stream])
            await until_durable(send, frame, self._clock, on_retry=self._note_retry)
        except (FrameError, InvalidPayload) as error:
            return error
        return None

    def _note_retry(self) -> None:
        self._counters.publish_retries += 1


def _by_job(messages: Sequence[Message]) -> Iterable[list[Message]]:
    """``messages`` of each job, in order."""
    jobs: dict[str, list[Message]] = {}
    for message in messages:
        jobs.setdefault(message.hello.job, []).append(message)
    return jobs.values()


def source_of(hello: Hello, stream: Stream) -> str:
    """The name under which the reader's ledger counts this stream of this SDK process."""
    return f"{hello.job}/{hello.attempt}/{hello.rank}/{stream}{hello.told_by}"


def _key(hello: Hello, stream: Stream) -> str:
    return f"{hello.boot} {source_of(hello, stream)}"


def _run_of(message: Message) -> Run:
    rows = message.rows
    return Run(
        source_of(message.hello, rows.stream),
        message.hello.boot,
        rows.seq,
        len(rows.rows),
        message.sender_now(),
    )


def _acknowledge(message: Message) -> None:
    for connection in message.waiting:
        connection.acknowledge(message.rows.stream, message.rows.seq)


def _fill(message: Message, region: str | None, node: str) -> None:
    """Put into every row what the whole process shares; the schema says which of it the stream carries."""
    hello = message.hello
    shared = {"region": region, "node": node, **hello.identity, "job": hello.job, "attempt": hello.attempt}
    shared.update({"rank": hello.rank, "gpu": hello.gpu, "simulated": False})
    known = SCHEMAS[STREAM_SCHEMAS[message.rows.stream]].names
    message.rows.rows[:] = [
        {**{name: shared[name] for name in known if name in shared}, **row} for row in message.rows.rows
    ]
    message.frame_bytes = bytes_in_frame(message.rows)


def bytes_in_frame(message: RowsMessage) -> int:
    """The most bytes that these rows, filled, take in a frame: each column's width and each text's UTF-8."""
    cells = len(message.rows) * len(SCHEMAS[STREAM_SCHEMAS[message.stream]]) * CELL_BYTES
    return (
        RUN_BYTES
        + cells
        + sum(
            len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            for row in message.rows
            for value in row.values()
            if type(value) is str
        )
    )


def warm_up(now: float) -> None:
    """Make a frame of each schema once: Arrow's first one takes 50 ms, which must not fall on the first bad step."""
    for schema_id in STREAM_SCHEMAS.values():
        shared = {"time": [now], "job": ["j"], "attempt": ["a"], "rank": [0], "step": [0], "name": ["n"]}
        shared |= {"kind": ["stack"], "simulated": [False]}
        columns = {name: value for name, value in shared.items() if name in SCHEMAS[schema_id].names}
        encode(Frame(schema_id, batch_of(schema_id, columns), (Run("warm-up", uuid.UUID(int=0), 0, 1, now),)))


def columns_of(stream: Stream, messages: Sequence[Message]) -> dict[str, list[object]]:
    """The messages' rows, in order, as columns; a cell that is not there is ``None``."""
    rows = [row for message in messages for row in message.rows.rows]
    names = [name for name in SCHEMAS[STREAM_SCHEMAS[stream]].names if any(name in row for row in rows)]
    return {name: [row.get(name) for row in rows] for name in names}
