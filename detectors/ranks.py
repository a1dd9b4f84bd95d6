"""The newest step of every rank of many jobs, in one flat array."""

import numpy as np

from detectors.windows import NO_STEP
from telemetry_bus.frames import Array

RANK_MAX = 1 << 19
"""The largest fleet that is planned for has 300,000 GPUs, and a rank to each."""
CELLS_MAX = 1 << 22
"""Steps that are kept in all (32 MiB): every rank of a fleet of 300,000 in each of thirteen attempts that are still
remembered."""
CELLS_MIN = 8
"""Ranks that a job has room for at first; then always twice as many."""


class RankSteps:
    """Blocks of one array by slot. A rank out of range, or beyond the room, is counted in ``left_out_rows`` and not
    kept."""

    def __init__(self) -> None:
        self._cells: Array = np.full(1024, NO_STEP, dtype=np.int64)
        self._used = 0
        self._begin: Array = np.zeros(64, dtype=np.int64)
        self._size: Array = np.zeros(64, dtype=np.int64)
        self.left_out_rows = 0

    def note(self, slots: Array, ranks: Array, step: Array) -> None:
        """The newest steps of ``ranks`` (arrays of one length). A rank that goes back stays at its newest."""
        if not len(slots):
            return
        top = int(slots.max())
        if top >= len(self._size):
            self._begin = np.resize(self._begin, 2 * top)
            self._size = np.r_[self._size, np.zeros(2 * top - len(self._size), dtype=np.int64)]
        valid = (ranks >= 0) & (ranks < RANK_MAX)
        small = valid & (ranks >= self._size[slots])
        if small.any():
            wanted = np.zeros(top + 1, dtype=np.int64)
            np.maximum.at(wanted, slots[small], ranks[small].astype(np.int64) + 1)
            for slot in np.flatnonzero(wanted).tolist():
                self._widen(slot, int(wanted[slot]))
            valid &= ranks < self._size[slots]
        self.left_out_rows += int((~valid).sum())
        np.maximum.at(self._cells, self._begin[slots[valid]] + ranks[valid], step[valid])

    def behind(self, slot: int) -> tuple[list[int], int | None, int]:
        """The ranks whose newest step is the lowest, that step, and how many ranks there are."""
        size = int(self._size[slot]) if slot < len(self._size) else 0
        block = self._cells[self._begin[slot] : self._begin[slot] + size] if size else np.zeros(0, dtype=np.int64)
        known = np.flatnonzero(block > NO_STEP)
        if not len(known):
            return [], None, 0
        lowest = int(block[known].min())
        return known[block[known] == lowest].tolist(), lowest, len(known)

    def forget(self, slot: int) -> None:
        """Give the room of a series back."""
        if slot < len(self._size):
            self._size[slot] = 0

    def _widen(self, slot: int, ranks: int) -> None:
        size = max(CELLS_MIN, 1 << (ranks - 1).bit_length())
        if self._used + size > len(self._cells):
            self._compact(size)
        if self._used + size > len(self._cells):
            return
        old, begin = int(self._size[slot]), self._used
        self._cells[begin : begin + size] = NO_STEP
        self._cells[begin : begin + old] = self._cells[self._begin[slot] : self._begin[slot] + old]
        self._begin[slot], self._size[slot], self._used = begin, size, begin + size

    def _compact(self, more: int) -> None:
        """Move the live blocks together, into an array with room for ``more``, up to the limit."""
        live = np.flatnonzero(self._size).tolist()
        needed = int(self._size.sum()) + more
        cells = np.full(min(max(len(self._cells), 2 * needed), CELLS_MAX), NO_STEP, dtype=np.int64)
        self._used = 0
        for slot in live:
            size = int(self._size[slot])
            cells[self._used : self._used + size] = self._cells[self._begin[slot] : self._begin[slot] + size]
            self._begin[slot] = self._used
            self._used += size
        self._cells = cells
