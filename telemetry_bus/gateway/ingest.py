"""What the HTTP entries share: who may write, how rows get durable, and what is counted. No HTTP."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from telemetry_bus.frames import Frame, encode
from telemetry_bus.gateway.bodies import HELD_BYTES_MAX, READERS_MAX
from telemetry_bus.gateway.metric_mapping import Unmapped
from telemetry_bus.gateway.numbering import Numbering
from telemetry_bus.gateway.pieces import Piece
from telemetry_bus.gateway.room import Room
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic

Accept = Callable[[Topic, Frame, str], Awaitable[None]]
"""Takes a frame under its partition key and returns once it is durable. Raises ``BusUnavailable`` (with its child
``OutletFull``) to be tried again, and ``FrameError`` for what will never be taken."""
CheckJob = Callable[[str, str], bool]
"""Whether the second is the token of the job that the first names."""
CheckGateway = Callable[[str | None], bool]
"""Whether who sends this token (``None``: no token) may write to this gateway."""


def encoded(publish: Callable[[Topic, Sequence[bytes], str], Awaitable[object]]) -> Accept:
    """A bus's, an outlet's or a gateway's ``publish`` as :data:`Accept`."""

    async def accept(topic: Topic, frame: Frame, key: str) -> None:
        await publish(topic, [encode(frame)], key)

    return accept


def check_of(token: Secret[str] | None) -> CheckGateway:
    """Whether somebody's token is ``token``; where there is none (the loopback), everybody's is."""

    def check(found: str | None) -> bool:
        if token is None:
            return True
        return found is not None and hmac.compare_digest(found.encode(), token.reveal().encode())

    return check


@dataclass(slots=True)
class IngestCounters:
    """What came in over HTTP. Everything only grows; every label starts at zero."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By path and status of the answer."""
    train_rows: int = 0
    """Rows of ``train/1`` and ``metric/1`` that came as JSON and are durable."""
    samples: int = 0
    """Samples of remote write and OTLP that are durable in some row."""
    absent: int = 0
    """Samples that said "no value": stale markers and DCGM's blanks."""
    unmapped: Counter[Unmapped] = field(default_factory=lambda: Counter(dict.fromkeys(Unmapped, 0)))
    """Samples that have no place here, by reason."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What the routes need. ``region`` goes into every row that names none."""

    accept: Accept
    clock: Clock
    check_job: CheckJob
    check_gateway: CheckGateway
    region: str | None = None
    held_bytes_max: int = HELD_BYTES_MAX


class Ingest:
    """The running state: numbers of sources, room, and counters. It belongs to one event loop."""

    def __init__(self, options: IngestOptions) -> None:
        self.options = options
        self.counters = IngestCounters()
        self.room = Room(options.held_bytes_max)
        self.readers = asyncio.Semaphore(READERS_MAX)
        self._numbering = Numbering()

    async def make_durable(self, pieces: Sequence[Piece]) -> None:
        """Hand all pieces up; durable when it returns.

        They go at once, so that a gateway can merge them. Where one fails the whole request has failed, and is sent
        again by who sent it: rows that were taken come twice, none is lost.
        """
        frames = [(piece, piece.numbered(self._numbering)) for piece in pieces]
        if len(frames) == 1:
            await self._one(*frames[0])
            return
        failures: list[Exception] = []
        async with asyncio.TaskGroup() as group:
            for piece, frame in frames:
                group.create_task(self._one_of_many(piece, frame, failures), name=f"ingest-{piece.key}")
        if failures:
            raise failures[0]

    async def _one(self, piece: Piece, frame: Frame) -> None:
        durable = False
        try:
            await self.options.accept(piece.topic, frame, piece.key)
            durable = True
        finally:
            if not durable:
                self._numbering.unused(frame)

    async def _one_of_many(self, piece: Piece, frame: Frame, failures: list[Exception]) -> None:
        try:
            await self._one(piece, frame)
        except Exception as error:  # noqa: BLE001  raised again by who waits for all of them
            failures.append(error)
