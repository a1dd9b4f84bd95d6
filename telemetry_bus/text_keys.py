"""Numbers that stand for texts, made for a whole column at once: what is looked up by name each second is looked up by
number, and only names that are new become Python strings.

A text's number is the sum over its bytes of (byte + 1) times a random number of its position, modulo 2^64 (multilinear
hashing; Carter and Wegman 1979, Lemire and Kaser 2014). The random numbers are the process's own, so that nobody
outside can make two names meet; by chance two of 100,000 do so once in 30 million processes.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

POSITIONS = 64 * 1024 + 1
"""The longest text that a frame may carry, so that no two positions share a number."""

STRETCHES_MIN, STRETCH_MEAN_MIN = 8, 8
"""A stretch costs as much as some twenty look-ups: after eight that are shorter than eight on the mean, look up."""

_FACTORS = np.frombuffer(os.urandom(8 * POSITIONS), np.uint64) | np.uint64(1)
"""Of the system's own randomness: a generator of numpy's costs every process, a node's collector too, 7 MiB."""
_NOTHING = np.frombuffer(os.urandom(8), np.uint64)[0]
"""Stands where a slot has no number."""


def text_keys(data: Array, starts: Array, ends: Array) -> Array:
    """The numbers (uint64) of the texts that lie one behind the other in ``data`` (uint8), none of them empty."""
    lengths = ends - starts
    positions = np.arange(starts[0], ends[-1]) - np.repeat(starts, lengths) if len(starts) else starts
    terms = (data[starts[0] : ends[-1]].astype(np.uint64) + np.uint64(1)) * _FACTORS[positions] if len(starts) else data
    sums: Array = np.add.reduceat(terms, starts - starts[0]) if len(starts) else np.zeros(0, np.uint64)
    return sums


def column_keys(column: Any) -> Array:
    """The numbers of an Arrow text column without nulls; that of an empty text is 0."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    keys = np.zeros(len(column), np.uint64)
    filled = np.flatnonzero(np.diff(ends))
    if len(filled):
        keys[filled] = text_keys(np.frombuffer(data, np.uint8), ends[:-1][filled], ends[1:][filled])
    return keys


class KeyTable:
    """Which slot has which number. A number has one slot, and a slot one number."""

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._keys: Array = np.full(64, _NOTHING)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def slots(self) -> Iterator[int]:
        """The slots that have a number, in the order in which they got it."""
        return iter(self._index.values())

    def put(self, key: int, slot: int) -> None:
        """Give ``slot`` the number ``key``."""
        if slot >= len(self._keys):
            more = max(slot + 1, 2 * len(self._keys)) - len(self._keys)
            self._keys = np.concatenate([self._keys, np.full(more, _NOTHING)])
        self._index[key] = slot
        self._keys[slot] = key

    def drop(self, slot: int) -> None:
        """Take its number from ``slot``, if it has one."""
        if self._index.get(key := int(self._keys[slot])) == slot:
            del self._index[key]
            self._keys[slot] = _NOTHING

    def get(self, key: int) -> int:
        """The slot of one number; -1 where it has none."""
        return self._index.get(key, -1)

    def find(self, keys: Array) -> Array:
        """The slot of each of ``keys``; -1 where it has none.

        What came together once mostly comes together again: neighbours in a frame are neighbours here, and are found by
        comparing two stretches of memory. Where they are not, each is looked up.
        """
        found = np.full(len(keys), -1, np.intp)
        at = stretches = 0
        while at < len(keys):
            if stretches > STRETCHES_MIN and at < STRETCH_MEAN_MIN * stretches:
                found[at:] = [self._index.get(key, -1) for key in keys[at:].tolist()]
                break
            slot = self._index.get(int(keys[at]), -1)
            length = 1 if slot < 0 else self._stretch(slot, keys[at:])
            found[at : at + length] = np.arange(slot, slot + length) if slot >= 0 else -1
            at, stretches = at + length, stretches + 1
        return found

    def _stretch(self, slot: int, keys: Array) -> int:
        """How many of ``keys`` are those of the slots from ``slot`` on."""
        here = self._keys[slot : slot + len(keys)]
        same = here == keys[: len(here)]
        return len(here) if same.all() else int(np.argmin(same))
