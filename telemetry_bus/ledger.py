"""Loss and repetition, measured at the reader: what each source has made against what has arrived.

Pure: it is given manifests and the time, and counts. Per source and boot, ``seq`` runs from 0 without holes; a hole is
*outstanding* (a backlog may fill it) until :data:`LOST_AFTER_SECONDS`, then it is *lost*, which is final.
"""

import math
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from telemetry_bus.frames import Run

LOST_AFTER_SECONDS = 6 * 3600.0
"""A node's spool holds four hours; what has not come two hours later does not come."""
SOURCES_MAX = 131_072
"""37,500 nodes, each restarted three times within the hours that are remembered."""
HOLES_MAX = 16_384
"""Four hours at one frame a second, for one source; what goes beyond is counted as lost at once."""
EARLY_MAX = 1_024
"""Frames from before the first one that this reader saw, remembered so that they are not taken twice."""


@dataclass(slots=True)
class SourceCount:
    """One boot of one source. ``holes`` maps a missing seq to the time (UTC seconds) at which it was missed."""

    source: str
    first: int
    following: int
    last_seen: float
    frames: int = 0
    duplicates: int = 0
    lost: int = 0
    holes: dict[int, float] = field(default_factory=dict)
    unread: dict[int, float] = field(default_factory=dict)
    """Like ``holes``, of frames that this reader itself may have skipped: no loss, and fresh if they come after all."""
    early: set[int] = field(default_factory=set)


class SourceLedger:
    """Counts the frames of every source. ``*_total`` never go down, not even when a silent source is forgotten."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, uuid.UUID], SourceCount] = OrderedDict()
        self.frames_total = 0
        self.duplicate_total = 0
        self.lost_total = 0
        self.outstanding = 0
        self._unread_before = -math.inf

    def __iter__(self) -> Iterator[SourceCount]:
        """Every boot of every source that is remembered."""
        return iter(self._counts.values())

    def skipped_before(self, now: float) -> None:
        """Say that this reader was moved past records that the bus took up to ``now`` (UTC seconds, its clock).

        Frames that a source made between its last one seen by ``now`` and its next one may be among them: nobody
        can call these missing.
        """
        self._unread_before = max(self._unread_before, now)

    def fresh(self, run: Run, now: float) -> bool:
        """Count ``run``, seen at ``now`` (UTC seconds on the bus's clock); False if it was here before."""
        key = (run.source, run.boot)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = SourceCount(run.source, run.seq, run.seq, now)
            self._forget()
        fresh = self._place(count, run.seq, now)
        count.last_seen = max(count.last_seen, now)
        self._counts.move_to_end(key)
        if fresh:
            count.frames += 1
            self.frames_total += 1
        else:
            count.duplicates += 1
            self.duplicate_total += 1
        return fresh

    def _place(self, count: SourceCount, seq: int, now: float) -> bool:
        if seq >= count.following:
            if count.last_seen <= self._unread_before:
                self._remember_unread(count, count.following, seq, now)
            else:
                self._open_holes(count, count.following, seq, now)
            count.following = seq + 1
            return True
        if seq in count.holes:
            del count.holes[seq]
            self.outstanding -= 1
            return True
        if count.unread.pop(seq, None) is not None:
            return True
        if seq >= count.first or seq in count.early:
            return False
        if len(count.early) < EARLY_MAX:
            count.early.add(seq)
        return True

    def _open_holes(self, count: SourceCount, start: int, stop: int, now: float) -> None:
        room = max(0, HOLES_MAX - len(count.holes))
        lost = max(0, stop - start - room)
        count.lost += lost
        self.lost_total += lost
        opened = range(start + lost, stop)
        count.holes.update(dict.fromkeys(opened, now))
        self.outstanding += len(opened)

    def _remember_unread(self, count: SourceCount, start: int, stop: int, now: float) -> None:
        room = max(0, HOLES_MAX - len(count.unread))
        count.unread.update(dict.fromkeys(range(max(start, stop - room), stop), now))

    def expire(self, now: float) -> None:
        """Call lost what is missing for :data:`LOST_AFTER_SECONDS`, and forget boots that are silent as long."""
        for key, count in list(self._counts.items()):
            late = [seq for seq, since in count.holes.items() if now - since >= LOST_AFTER_SECONDS]
            for seq in late:
                del count.holes[seq]
            self.outstanding -= len(late)
            self.lost_total += len(late)
            count.lost += len(late)
            count.unread = {seq: since for seq, since in count.unread.items() if now - since < LOST_AFTER_SECONDS}
            if not count.holes and now - count.last_seen >= LOST_AFTER_SECONDS:
                del self._counts[key]

    def _forget(self) -> None:
        while len(self._counts) > SOURCES_MAX:
            _, count = self._counts.popitem(last=False)
            self.outstanding -= len(count.holes)
            self.lost_total += len(count.holes)
