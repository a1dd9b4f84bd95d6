"""Sends what is in a spool: in order, merged, behind live frames, and at the pace that is granted."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from collectors.backlog import Batch, batches, frame_of
from collectors.moment import Moment
from collectors.spool import Entry, Spool
from collectors.under_way import UnderWay
from telemetry_bus.errors import BusUnavailable, FrameError, OutletFull
from telemetry_bus.frames import encode
from telemetry_bus.outlet import Outlet
from telemetry_bus.topics import Topic

BACKLOG_BYTES_PER_SECOND_MAX = 8 * 1024**2
"""Where nobody else limits the pace: a thousand times what 8 GPUs make in a second."""
BACKLOG_ANSWER_SECONDS_MAX = 30.0
LIVE_FIRST_SECONDS = 0.1
"""A frame of the backlog waits so long at most for a live one that is under way."""
LOOK_SECONDS = 1.0
"""How often the grant is looked at: it changes as other nodes come and go."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class UpwardCounters:
    """What ``/metrics`` shows. All only grow."""

    frames_live: int = 0
    frames_spooled: int = 0
    backlog_frames: int = 0
    """Frames that were in the spool and are durable at the far end, counted before they are merged."""
    backlog_bytes: int = 0
    outages: int = 0
    away_seconds: float = 0.0
    probes: int = 0
    refused: int = 0
    """Spooled frames that the far end will never take."""


class SpoolSender:
    """Belongs to a node's way up. ``live`` counts its live frames that are under way."""

    def __init__(
        self,
        outlet: Outlet,
        spool: Spool,
        counters: UpwardCounters,
        live: UnderWay,
        is_away: Callable[[], bool],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._outlet, self._spool, self._counters, self._live = outlet, spool, counters, live
        self._is_away, self._sleep = is_away, sleep

    async def sent_as(self, topic: Topic | None) -> bool:
        """Send the oldest entries, to ``topic`` or (``None``) to their own; False if the far end does not take them.

        They are settled when all of them are durable there: after a kill in between they are sent again, and readers
        know them by their manifest.
        """
        try:
            entries = await self._spool.read()
            for batch in batches(entries):
                await self._send(batch, batch.topic if topic is None else topic)
            await self._spool.settle(entries)
        except OutletFull as full:
            await self._sleep(full.retry_after_seconds * random.uniform(1.0, 1.5))
            return False
        except (BusUnavailable, TimeoutError) as error:
            _log.warning("the spool waits: %s", str(error) or "no answer")
            return False
        self._counters.backlog_frames += len(entries) if topic is Topic.BACKLOG else 0
        return True

    async def _send(self, batch: Batch, topic: Topic) -> None:
        if topic is Topic.BACKLOG:
            while not self._outlet.backlog_bytes_per_second > 0:
                await self._sleep(LOOK_SECONDS)
            await self._live.none(LIVE_FIRST_SECONDS)
        try:
            payload = await self._published(batch, topic)
        except FrameError as error:
            await self._send_apart(batch, topic, error)
            return
        for entry in batch.damaged:
            self._lost(entry)
        if topic is Topic.BACKLOG:
            self._counters.backlog_bytes += len(payload)
            await self._pace(len(payload))

    async def _published(self, batch: Batch, topic: Topic) -> bytes:
        """Publish a batch as one frame, stamped anew at each try; a gateway that is full just now is asked again."""
        while True:
            # In a thread: it is some 10 ms of work, in which live frames go on.
            payload = await asyncio.to_thread(_merged, batch, self._spool.moment())
            try:
                async with asyncio.timeout(BACKLOG_ANSWER_SECONDS_MAX):
                    if payload:
                        await self._outlet.publish(topic, [payload], batch.key)
                return payload
            except OutletFull as full:
                if topic is not Topic.BACKLOG or self._is_away():
                    raise
                await self._sleep(full.retry_after_seconds * random.uniform(1.0, 1.5))

    async def _send_apart(self, batch: Batch, topic: Topic, refused: FrameError) -> None:
        """One frame among these is refused for ever: the others are sent, it is counted."""
        if len(batch.entries) > 1:
            half = len(batch.entries) // 2
            for part in (batch.entries[:half], batch.entries[half:]):
                await self._send(Batch(batch.topic, batch.key, part), topic)
            return
        _log.error("a frame of the spool is refused for good: %s", refused)
        self._lost(batch.entries[0])

    def _lost(self, entry: Entry) -> None:
        self._counters.refused += 1
        self._spool.count_lost(entry)

    async def _pace(self, size: int) -> None:
        """Wait as long as what was sent takes at the granted pace, and look at the grant every second."""
        while size > 0:
            granted = max(0.0, min(self._outlet.backlog_bytes_per_second, BACKLOG_BYTES_PER_SECOND_MAX))
            wait = min(LOOK_SECONDS, size / granted) if granted else LOOK_SECONDS
            await self._sleep(wait)
            size -= math.ceil(wait * granted)


def _merged(batch: Batch, now: Moment) -> bytes:
    """The batch as one encoded frame; nothing if there is no frame in it."""
    frame = frame_of(batch, now)
    return b"" if frame is None else encode(frame)
