"""Loss and repetition, measured at the reader: what each source has made against what has arrived.

Pure: it is given manifests and the time, and counts. Per source and boot, ``seq`` runs from 0 without holes; a hole is
*outstanding* (a backlog may fill it) until :data:`LOST_AFTER_SECONDS`, then it is *lost*, which is final.
"""

import math
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from telemetry_bus.frames import Run

LOST_AFTER_SECONDS = 6 * 3600.0
"""A node's spool holds four hours; what has not come two hours later does not come."""
SOURCES_MAX = 131_072
"""37,500 nodes, each restarted three times within the hours that are remembered."""
HOLES_MAX = 16_384
"""Four hours at one frame a second, for one source; what goes beyond is counted as lost at once."""
CLOCK_STEP_SECONDS = 60.0
"""Readers of several partitions see times out of order by seconds; a time that is older by more than this is the bus's
clock set back, and what was remembered from before is brought back with it."""
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
        self._holed: dict[tuple[str, uuid.UUID], SourceCount] = {}
        self._boots: Counter[str] = Counter()
        self.last_seen: dict[str, float] = {}
        """The bus's time (UTC seconds) of each source's newest frame, whatever its boot. For reading only."""
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

    def holed(self) -> Iterator[SourceCount]:
        """The boots that miss frames: mostly few, whatever the number of sources."""
        return (count for count in self._holed.values() if count.holes)

    def fresh(self, run: Run, now: float) -> bool:
        """Count ``run``, seen at ``now`` (UTC seconds on the bus's clock); False if it was here before."""
        key = (run.source, run.boot)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = SourceCount(run.source, run.seq, run.seq, now)
            self._boots[run.source] += 1
            self.last_seen.setdefault(run.source, now)
            self._forget_longest_silent()
        fresh = self._place(count, run.seq, now)
        count.last_seen = _later(count.last_seen, now)
        self.last_seen[run.source] = _later(self.last_seen[run.source], now)
        self._counts.move_to_end(key)
        if count.holes or count.unread:
            self._holed[key] = count
        else:
            self._holed.pop(key, None)
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
        """Call lost what is missing for :data:`LOST_AFTER_SECONDS`, and forget boots that are silent as long.

        Only what has holes and what has been silent longest is looked at: it may be called at every tick.
        """
        for key, count in list(self._holed.items()):
            late = [seq for seq, since in count.holes.items() if now - since >= LOST_AFTER_SECONDS]
            for seq in late:
                del count.holes[seq]
            self.outstanding -= len(late)
            self.lost_total += len(late)
            count.lost += len(late)
            count.unread = {seq: since for seq, since in count.unread.items() if now - since < LOST_AFTER_SECONDS}
            if not (count.holes or count.unread):
                del self._holed[key]
        silent = []
        for key, count in self._counts.items():  # the longest silent is the first
            if now - count.last_seen < LOST_AFTER_SECONDS:
                break
            if not count.holes:
                silent.append(key)
        for key in silent:
            self._forget(key)

    def set_back(self, now: float) -> None:
        """The bus's clock was set back to ``now``: what was seen or missed later than that was so now."""
        for count in self._counts.values():
            count.last_seen = min(count.last_seen, now)
        for count in self._holed.values():
            count.holes = {seq: min(since, now) for seq, since in count.holes.items()}
            count.unread = {seq: min(since, now) for seq, since in count.unread.items()}
        self.last_seen = {source: min(seen, now) for source, seen in self.last_seen.items()}

    def _forget_longest_silent(self) -> None:
        while len(self._counts) > SOURCES_MAX:
            count = self._forget(next(iter(self._counts)))
            self.outstanding -= len(count.holes)
            self.lost_total += len(count.holes)

    def _forget(self, key: tuple[str, uuid.UUID]) -> SourceCount:
        count = self._counts.pop(key)
        self._holed.pop(key, None)
        self._boots[count.source] -= 1
        if not self._boots[count.source]:
            del self._boots[count.source], self.last_seen[count.source]
        return count


def _later(known: float, now: float) -> float:
    """The later of two times, unless the clock was set back in between."""
    return now if now < known - CLOCK_STEP_SECONDS else max(known, now)
