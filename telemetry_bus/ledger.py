"""Loss and repetition, measured at the reader: what each source has made against what has arrived.

Pure: it is given manifests and the time, and counts. Per source and boot, ``seq`` runs from 0 without holes; a hole is
*outstanding* (a backlog may fill it) until :data:`LOST_AFTER_SECONDS`, then it is *lost*, which is final.

The runs of a frame are looked at together, as arrays: only what is not simply the next frame of its source is looked at
one by one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from telemetry_bus.manifest import Array, Manifest, Run
from telemetry_bus.ranges import Ranges
from telemetry_bus.source_table import ClockOffsets, LastSeen, SimulatedSources, SourceRegions, SourceTable
from telemetry_bus.text_keys import KeyTable

LOST_AFTER_SECONDS = 6 * 3600.0
"""A node's spool holds four hours; what has not come two hours later does not come."""
SOURCES_MAX = 2_097_152
"""300,000 ranks of three streams each and 37,500 nodes of three, each of them restarted once within the hours that are
remembered. A source costs some 300 bytes once it is there. Beyond it the longest silent are forgotten, and counted."""
HOLES_MAX = 1_048_576
"""A day at ten frames a second, for one source; what goes beyond is lost at once. They are kept as ranges."""
CLOCK_STEP_SECONDS = 60.0
"""Readers of several partitions see times out of order by seconds; a time that is older by more than this is the bus's
clock set back, and what was remembered from before is brought back with it."""
EARLY_MAX = 1_024
"""Frames from before the first one that this reader saw, remembered so that they are not taken twice."""

_BOOT = np.dtype(
    [
        ("first", "i8"),
        ("following", "i8"),
        ("seen", "f8"),
        ("frames", "i8"),
        ("duplicates", "i8"),
        ("lost", "i8"),
        ("source", "i8"),
        ("used", "?"),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceCount:
    """One boot of one source as it stands. ``holes`` are the numbers of the frames that are outstanding."""

    source: str
    frames: int
    duplicates: int
    lost: int
    holes: Ranges = field(repr=False)
    early: frozenset[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Placed:
    """What the ledger says of a manifest's runs: which are fresh, and each one's row in the table of sources."""

    fresh: Array
    sources: Array


class SourceLedger:
    """Counts the frames of every source. ``*_total`` never go down, not even when a silent source is forgotten."""

    def __init__(self, sources_max: int = SOURCES_MAX) -> None:
        self.sources = SourceTable()
        self.forgotten_total = 0
        """Boots forgotten for the bound: of these neither loss nor repetition is known any more."""
        self._sources_max = sources_max
        self.last_seen = LastSeen(self.sources)
        """The bus's time (UTC seconds) of each source's newest frame, whatever its boot."""
        self.clock_offsets = ClockOffsets(self.sources)
        self.simulated = SimulatedSources(self.sources)
        self.regions = SourceRegions(self.sources)
        self.frames_total = 0
        self.duplicate_total = 0
        self.lost_total = 0
        self.outstanding = 0
        self._boots = np.zeros(64, dtype=_BOOT)
        self._table = KeyTable()
        self._room = 0
        self._free: list[int] = []
        self._holes: dict[int, Ranges] = {}
        self._unread: dict[int, Ranges] = {}
        """Like holes, of frames that this reader itself may have skipped: no loss, and fresh if they come after all."""
        self._early: dict[int, set[int]] = {}
        self._unread_before = -math.inf

    def __iter__(self) -> Iterator[SourceCount]:
        """Every boot of every source that is remembered."""
        return map(self._count, self._table.slots())

    def holed(self) -> Iterator[SourceCount]:
        """The boots that miss frames: mostly few, whatever the number of sources."""
        return (self._count(slot) for slot in list(self._holes))

    def repeated(self) -> Iterator[SourceCount]:
        """The boots of which frames came more than once."""
        return map(self._count, np.flatnonzero(self._boots["used"] & (self._boots["duplicates"] > 0)).tolist())

    def losers(self) -> Iterator[SourceCount]:
        """The boots of which frames were lost."""
        return map(self._count, np.flatnonzero(self._boots["used"] & (self._boots["lost"] > 0)).tolist())

    def skipped_before(self, now: float) -> None:
        """Say that this reader was moved past records that the bus took up to ``now`` (UTC seconds, its clock).

        Frames that a source made between its last one seen by ``now`` and its next one may be among them: nobody
        can call these missing.
        """
        self._unread_before = max(self._unread_before, now)

    def fresh(self, run: Run, now: float) -> bool:
        """Count one run, seen at ``now`` (UTC seconds on the bus's clock); False if it was here before."""
        return bool(self.take(Manifest.of([run]), now).fresh[0])

    def take(self, manifest: Manifest, now: float) -> Placed:
        """Count the runs of a frame that was seen at ``now`` (UTC seconds on the bus's clock)."""
        slots, boots = self._slots(manifest, now), self._boots
        fresh = np.ones(len(slots), dtype=bool)
        is_next = boots["following"][slots] == manifest.seqs
        if len(np.unique(slots)) < len(slots):
            is_next[:] = False  # a source several times in one frame: its runs in their order
        ahead = slots[is_next]
        boots["following"][ahead] += 1
        for at in np.flatnonzero(~is_next).tolist():
            slot = int(slots[at])
            fresh[at] = self._place(slot, int(manifest.seqs[at]), now)
            boots["seen"][slot] = _later(boots["seen"][slot], now)
        boots["seen"][ahead] = _later(boots["seen"][ahead], now)
        sources = boots["source"][slots]
        self.sources.rows["seen"][sources] = _later(self.sources.rows["seen"][sources], now)
        np.add.at(boots["frames"], slots[fresh], 1)
        np.add.at(boots["duplicates"], slots[~fresh], 1)
        self.frames_total += int(fresh.sum())
        self.duplicate_total += len(fresh) - int(fresh.sum())
        return Placed(fresh, sources)

    def _slots(self, manifest: Manifest, now: float) -> Array:
        keys = manifest.keys()
        slots = self._table.find(keys)
        if (slots >= 0).all():
            return slots
        for at in np.flatnonzero(slots < 0).tolist():
            known = self._table.get(int(keys[at]))
            slots[at] = self._adopt(int(keys[at]), manifest, at, now) if known < 0 else known
        if len(self._table) > self._sources_max:
            self._forget_longest_silent(slots)
        return slots

    def _adopt(self, key: int, manifest: Manifest, at: int, now: float) -> int:
        if not self._free:
            if self._room == len(self._boots):
                self._boots = np.concatenate([self._boots, np.zeros(len(self._boots), dtype=_BOOT)])
            self._free.append(self._room)
            self._room += 1
        slot = self._free.pop()
        self._table.put(key, slot)
        seq, source = int(manifest.seqs[at]), self.sources.adopt(manifest.source(at))
        self._boots[slot] = (seq, seq, now, 0, 0, 0, source, True)
        return slot

    def _place(self, slot: int, seq: int, now: float) -> bool:
        boot = self._boots[slot]
        if seq >= boot["following"]:
            self._note_missing(slot, int(boot["following"]), seq, now)
            boot["following"] = seq + 1
            return True
        if (holes := self._holes.get(slot)) is not None and holes.discard(seq):
            self.outstanding -= 1
            if not holes:
                del self._holes[slot]
            return True
        if (unread := self._unread.get(slot)) is not None and unread.discard(seq):
            return True
        early = self._early.setdefault(slot, set()) if seq < boot["first"] else set()
        if seq >= boot["first"] or seq in early:
            return False
        if len(early) < EARLY_MAX:
            early.add(seq)
        return True

    def _note_missing(self, slot: int, begin: int, end: int, now: float) -> None:
        if begin >= end:
            return
        is_unread = self._boots["seen"][slot] <= self._unread_before
        ranges = (self._unread if is_unread else self._holes).setdefault(slot, Ranges())
        before = len(ranges)
        ranges.append(begin, end, now)
        ranges.shorten(HOLES_MAX)
        if not is_unread:
            self.outstanding += len(ranges) - before
            self._lose(slot, end - begin + before - len(ranges))

    def _lose(self, slot: int, frames: int) -> None:
        self._boots["lost"][slot] += frames
        self.lost_total += frames

    def expire(self, now: float) -> None:
        """Call lost what is missing for :data:`LOST_AFTER_SECONDS`, and forget boots that are silent as long.

        Only what has holes is looked at one by one: it may be called at every tick.
        """
        before = now - LOST_AFTER_SECONDS
        for slot, holes in list(self._holes.items()):
            lost = holes.expire(before)
            self.outstanding -= lost
            self._lose(slot, lost)
            if not holes:
                del self._holes[slot]
        for slot, unread in list(self._unread.items()):
            unread.expire(before)
            if not unread:
                del self._unread[slot]
        for slot in np.flatnonzero(self._boots["used"] & (self._boots["seen"] <= before)).tolist():
            if slot not in self._holes:
                self._forget(slot)

    def set_back(self, now: float) -> None:
        """The bus's clock was set back to ``now``: what was seen or missed later than that was so now."""
        np.minimum(self._boots["seen"], now, out=self._boots["seen"])
        np.minimum(self.sources.rows["seen"], now, out=self.sources.rows["seen"])
        for region, seen in self.sources.region_seen.items():
            self.sources.region_seen[region] = min(seen, now)
        for ranges in (*self._holes.values(), *self._unread.values()):
            ranges.not_after(now)

    def _forget_longest_silent(self, kept: Array) -> None:
        """Bring the number of boots back to its bound: not those at hand; what the others missed is lost."""
        seen = np.where(self._boots["used"], self._boots["seen"], np.inf)
        seen[kept] = np.inf
        held = set(kept.tolist())
        over = len(self._table) - self._sources_max + self._sources_max // 64  # so that not every frame has to look
        for slot in np.argsort(seen, kind="stable")[:over].tolist():
            if not self._boots["used"][slot] or slot in held:
                continue
            self.forgotten_total += 1
            if (holes := self._holes.get(slot)) is not None:
                self.outstanding -= len(holes)
                self.lost_total += len(holes)
            self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._holes.pop(slot, None)
        self._unread.pop(slot, None)
        self._early.pop(slot, None)
        self.sources.release(int(self._boots["source"][slot]))
        self._table.drop(slot)
        self._boots["used"][slot] = False
        self._free.append(slot)

    def _count(self, slot: int) -> SourceCount:
        boot = self._boots[slot]
        source = self.sources.names[boot["source"]]
        holes, early = self._holes.get(slot, Ranges()), frozenset(self._early.get(slot, ()))
        return SourceCount(source, int(boot["frames"]), int(boot["duplicates"]), int(boot["lost"]), holes, early)


def _later(known: Array, now: float) -> Array:
    """The later of two times, unless the clock was set back in between."""
    return np.where(now < known - CLOCK_STEP_SECONDS, now, np.maximum(known, now))
