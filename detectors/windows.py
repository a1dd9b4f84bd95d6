"""Series: the running state of many jobs as rows of one structured array, which grows, is bounded, and is freed.

A frame is brought to the series once, as an array of slots; what follows are operations on arrays.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry_bus.frames import Array, Frame
from telemetry_bus.ledger import CLOCK_STEP_SECONDS

JobKey = tuple[str, str]
"""A job and its attempt (steps are ordered within an attempt only), or a node and nothing."""

SERIES_MAX = 16_384
"""Attempts of jobs that are remembered at once: a fleet of 37,500 nodes with a job on every two or three of them."""
SILENT_SECONDS = 6 * 3600.0
"""A series that has shown nothing for so long is forgotten; the longest honest pause (a large checkpoint) is
minutes."""
SMALL_ROWS = 16
"""Up to so many rows a dictionary is faster than Arrow's encoding (measured: 2 µs a row against 30 µs a frame)."""
STEP_LIMIT = 1 << 53
"""Steps are clipped to where sums of two of them cannot overflow an int64."""
PIECES_MAX = 64
"""New attempts of known jobs in one frame that are seen in their order; a launcher restarts a job every few minutes."""
NO_STEP = -(1 << 54)
"""The step of a series that has shown none: below every clipped step."""


class SeriesTable:
    """Slots of a structured array ``state`` by key. The dtype needs a field ``seen`` (event time, UTC seconds).

    ``blank`` is the state of a new series. Beyond ``limit`` the longest unseen sixteenth is forgotten; what finds no
    slot even so (more new series in one frame than the limit) is left out. Both are counted.
    """

    def __init__(self, blank: "np.ndarray[tuple[()], np.dtype[np.void]]", limit: int = SERIES_MAX) -> None:
        self._blank = blank
        self._limit = limit
        self.state: Array = np.full(min(64, limit), blank)
        self.keys: list[JobKey | None] = [None] * len(self.state)
        self._slots: dict[JobKey, int] = {}
        self._by_job: dict[str, list[int]] = {}
        self._free = list(range(len(self.state) - 1, -1, -1))
        self.forgotten = 0
        self.left_out_rows = 0

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, key: JobKey) -> int | None:
        """The slot of a series that is known."""
        return self._slots.get(key)

    def slot_for(self, key: JobKey) -> int | None:
        """The slot of a series, new if need be; ``None`` where there is no room."""
        known = self._slots.get(key)
        slot = self._take(key, set()) if known is None else known
        return slot if slot >= 0 else None

    def slots(self, frame: Frame, name: str = "job", and_name: str | None = "attempt") -> tuple[Array, list[int]]:
        """The slot of every row of ``frame`` (-1 where there is no room), and the slots that are new."""
        return self._find(*_codes(frame, name, and_name))

    def pieces(self, frame: Frame) -> Iterator[tuple[Frame, Array, list[int]]]:
        """The frame cut before each row with which a new attempt of a known job begins, so that what its beginning
        ends has been seen before. Each piece comes with what :meth:`slots` says of it. Mostly it is the whole frame.
        """
        codes, keys = _codes(frame, "job", "attempt")
        jobs = Counter(job for job, _attempt in keys)
        again = [
            at for at, key in enumerate(keys) if key not in self._slots and (key[0] in self._by_job or jobs[key[0]] > 1)
        ]
        if not again:
            yield frame, *self._find(codes, keys)
            return
        distinct, rows = np.unique(codes, return_index=True)
        cuts = np.sort(rows[np.isin(distinct, again)])[:PIECES_MAX].tolist()
        for begin, end in pairwise(sorted({0, *cuts, frame.rows})):
            piece = Frame(frame.schema_id, frame.batch.slice(begin, end - begin), ())
            yield piece, *self.slots(piece)

    def _find(self, codes: Array, keys: list[JobKey]) -> tuple[Array, list[int]]:
        found = [self._slots.get(key, -1) for key in keys]
        new: list[int] = []
        if -1 in found:
            held = {slot for slot in found if slot >= 0}
            for at, slot in enumerate(found):
                if slot < 0:
                    found[at] = self._take(keys[at], held)
                    if found[at] >= 0:
                        new.append(found[at])
        by_row = np.array(found, dtype=np.intp)[codes]
        if -1 in found:
            self.left_out_rows += int((by_row < 0).sum())
        return by_row, new

    def of_job(self, job: str) -> list[int]:
        """The slots of every attempt of ``job`` that is known."""
        return list(self._by_job.get(job, ()))

    def free(self, slot: int) -> None:
        """Forget one series."""
        key = self.keys[slot]
        if key is not None:
            del self._slots[key]
            self._by_job[key[0]].remove(slot)
            if not self._by_job[key[0]]:
                del self._by_job[key[0]]
            self.keys[slot] = None
            self.state[slot] = self._blank
            self._free.append(slot)

    def silent(self, now: float) -> list[int]:
        """The slots that have been silent for :data:`SILENT_SECONDS`."""
        if not self._slots:
            return []
        not_from_the_future(self.state["seen"], now)
        return [
            int(slot)
            for slot in np.flatnonzero(self.state["seen"] < now - SILENT_SECONDS)
            if self.keys[slot] is not None
        ]

    def _take(self, key: JobKey, held: set[int]) -> int:
        if not self._free and len(self.state) < self._limit:
            self._grow()
        if not self._free:
            self._forget_oldest(held)
        if not self._free:
            return -1
        slot = self._free.pop()
        self.keys[slot], self._slots[key] = key, slot
        self._by_job.setdefault(key[0], []).append(slot)
        held.add(slot)
        return slot

    def _grow(self) -> None:
        old = len(self.state)
        size = min(2 * old, self._limit)
        self.state = np.concatenate([self.state, np.full(size - old, self._blank)])
        self.keys.extend([None] * (size - old))
        self._free.extend(range(size - 1, old - 1, -1))

    def _forget_oldest(self, held: set[int]) -> None:
        wanted = max(1, self._limit // 16)
        order = np.argsort(self.state["seen"], kind="stable")
        victims = [int(slot) for slot in order if int(slot) not in held][:wanted]
        for slot in victims:
            self.free(slot)
        self.forgotten += len(victims)


def _codes(frame: Frame, name: str, and_name: str | None) -> tuple[Array, list[JobKey]]:
    """For every row which of the frame's few keys it belongs to. Absent text is empty."""
    if frame.rows <= SMALL_ROWS:
        numbers: dict[JobKey, int] = {}
        seconds = [None] * frame.rows if and_name is None else frame.strings(and_name)
        pairs = zip(frame.strings(name), seconds, strict=True)
        codes = [numbers.setdefault((first or "", second or ""), len(numbers)) for first, second in pairs]
        return np.array(codes, dtype=np.intp), list(numbers)
    firsts, first_codes = _encoded(frame, name)
    if and_name is None:
        return first_codes, [(first, "") for first in firsts]
    seconds_text, second_codes = _encoded(frame, and_name)
    both = first_codes * len(seconds_text) + second_codes
    distinct, codes_of_rows = np.unique(both, return_inverse=True)
    keys = [(firsts[code // len(seconds_text)], seconds_text[code % len(seconds_text)]) for code in distinct.tolist()]
    return codes_of_rows, keys


def not_from_the_future(seconds: Array, now: float) -> None:
    """The bus's clock may be set back: times that it cannot have shown yet become ``now``, in place."""
    seconds[seconds > now + CLOCK_STEP_SECONDS] = now


def texts(frame: Frame, name: str) -> tuple[list[str], Array]:
    """A text column as its few distinct values and, for every row, which of them it has. Absent text is empty."""
    if frame.rows > SMALL_ROWS:
        return _encoded(frame, name)
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(value or "", len(numbers)) for value in frame.strings(name)]
    return list(numbers), np.array(codes, dtype=np.intp)


def _encoded(frame: Frame, name: str) -> tuple[list[str], Array]:
    column: Any = frame.batch.column(name)
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(""))
    encoded: Any = pc.dictionary_encode(column)
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)


def rounds(slots: Array) -> Iterator[Array]:
    """Cut rows into rounds in which no series appears twice, each series' rows in their order.

    Rows of many jobs are one round; many rows of one job are a round each.
    """
    if len(slots) == 1:
        yield np.zeros(1, dtype=np.intp)
        return
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    occurrence = np.arange(len(slots)) - np.repeat(begins, np.diff(np.r_[begins, len(slots)]))
    if len(begins) == len(slots):
        yield np.arange(len(slots))
        return
    by_round = np.argsort(occurrence, kind="stable")
    ends = np.cumsum(np.bincount(occurrence))
    yield from (np.sort(order[part]) for part in np.split(by_round, ends[:-1]))


def steps(frame: Frame) -> Array:
    """The steps, clipped to what arithmetic can carry."""
    return np.clip(frame.numbers("step")[0], -STEP_LIMIT, STEP_LIMIT)
