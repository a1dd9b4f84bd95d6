"""The manifest of a frame: for every run of its rows where they came from, as arrays.

A merged second of a rack has 64 runs, and one of a whole region tens of thousands: readers look at all of them at once
and never walk them one by one.
"""

import secrets
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np

from telemetry_bus.text_keys import text_keys

Array = np.ndarray[Any, np.dtype[Any]]

SOURCE_BYTES_MAX = 256
"""A host name has at most 253 characters."""
SEQ_END = (1 << 63) - 1
"""The number that follows a frame's fits into an int64 too."""
SECONDS_MAX = 9.2e12
"""int64 microseconds end there, 290,000 years from 1970. NaN is not below it either."""
BOOT_BYTES = 16
_BOOT_FACTORS = np.array([secrets.randbits(63) * 2 + 1 for _ in range(2)], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run of rows came from.

    ``source`` names the maker, ``boot`` is a UUID of its process's start, ``seq`` counts its frames from 0, ``rows`` is
    the length of the run, and ``sent`` is the maker's own clock (UTC seconds) when it let the frame go: held against
    the bus's clock it shows how far the maker's clock is off.
    """

    source: str
    boot: uuid.UUID
    seq: int
    rows: int
    sent: float


@dataclass(frozen=True, slots=True, eq=False)
class Manifest(Sequence[Run]):
    """Runs in the order of their rows; as a sequence it gives :class:`Run` objects.

    ``boots`` (16 bytes a run) and ``names`` (UTF-8) hold all runs one after the other; ``ends`` is where each name ends
    in ``names``. ``seqs``, ``rows`` and ``ends`` are int64, ``sents`` float64, each of shape ``(runs,)``.
    """

    boots: bytes
    names: bytes
    ends: Array
    seqs: Array
    rows: Array
    sents: Array

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Self:
        """The manifest of ``runs``."""
        listed = list(runs)
        names = [run.source.encode() for run in listed]
        return cls(
            b"".join(run.boot.bytes for run in listed),
            b"".join(names),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            _integers([run.seq for run in listed]),
            _integers([run.rows for run in listed]),
            np.array([run.sent for run in listed], dtype=np.float64),
        )

    @classmethod
    def joined(cls, parts: Sequence["Manifest"]) -> Self:
        """All runs of ``parts`` (one or more), in order."""
        lengths = np.array([len(part.names) for part in parts], dtype=np.int64)
        shifts = np.cumsum(lengths) - lengths
        return cls(
            b"".join(part.boots for part in parts),
            b"".join(part.names for part in parts),
            np.concatenate([part.ends + shift for part, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([part.seqs for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.sents for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.seqs)

    @overload
    def __getitem__(self, at: int) -> Run: ...
    @overload
    def __getitem__(self, at: slice) -> "Manifest": ...
    def __getitem__(self, at: int | slice) -> "Run | Manifest":
        if isinstance(at, slice):
            return self.selected(np.arange(len(self))[at])
        at = range(len(self))[at]
        return Run(
            self.source(at),
            uuid.UUID(bytes=self.boots[BOOT_BYTES * at : BOOT_BYTES * (at + 1)]),
            int(self.seqs[at]),
            int(self.rows[at]),
            float(self.sents[at]),
        )

    def __iter__(self) -> Iterator[Run]:
        return (self[at] for at in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    def sources(self) -> list[str]:
        """The source of every run."""
        return [name.decode() for name in self._names()]

    def keys(self) -> Array:
        """Source and boot of every run as one uint64: equal where both are (see :mod:`telemetry_bus.text_keys`)."""
        if not len(self):
            return np.zeros(0, np.uint64)
        starts = np.concatenate([[0], self.ends[:-1]])
        names = text_keys(np.frombuffer(self.names, np.uint8), starts, self.ends)
        boots = np.frombuffer(self.boots, np.uint64).reshape(-1, 2) * _BOOT_FACTORS
        return np.asarray(names + boots.sum(axis=1, dtype=np.uint64))

    def source(self, at: int) -> str:
        """The source of one run."""
        begin = int(self.ends[at - 1]) if at else 0
        return self.names[begin : int(self.ends[at])].decode()

    def starts(self) -> Array:
        """The first row of every run."""
        return np.cumsum(self.rows) - self.rows

    def selected(self, kept: Array) -> "Manifest":
        """The runs at ``kept`` (indices or a mask)."""
        kept = np.arange(len(self))[kept]
        names, boots = self._names(), np.frombuffer(self.boots, dtype=f"V{BOOT_BYTES}")
        chosen = [names[at] for at in kept.tolist()]
        return Manifest(
            boots[kept].tobytes(),
            b"".join(chosen),
            np.cumsum([len(name) for name in chosen], dtype=np.int64),
            self.seqs[kept],
            self.rows[kept],
            self.sents[kept],
        )

    def counting(self, rows: Array) -> "Manifest":
        """The same runs with other numbers of rows."""
        return Manifest(self.boots, self.names, self.ends, self.seqs, rows, self.sents)

    def sent_at(self, now: float) -> "Manifest":
        """The same runs with ``now`` as their makers' clock."""
        return Manifest(self.boots, self.names, self.ends, self.seqs, self.rows, np.full(len(self), now))

    def fault(self) -> str | None:
        """What no run may be, in words; ``None`` where all can be."""
        lengths = self.ends.copy()
        lengths[1:] -= self.ends[:-1]
        names = (lengths > 0) & (lengths <= SOURCE_BYTES_MAX)
        with np.errstate(invalid="ignore"):
            good = names & (self.seqs >= 0) & (self.seqs < SEQ_END) & (self.rows >= 0)
            good &= np.abs(self.sents) < SECONDS_MAX
        if not good.all():
            at = int(np.argmin(good))
            return f"run {at} of {len(self)} is not a run: {int(lengths[at])} bytes of name, seq {int(self.seqs[at])}"
        try:
            self.names.decode() if self.names.isascii() else self.sources()
        except UnicodeDecodeError as error:
            return f"the name of a source is not UTF-8: {error}"
        return None

    def _names(self) -> list[bytes]:
        names, begin, found = self.names, 0, []
        for end in self.ends.tolist():
            found.append(names[begin:end])
            begin = end
        return found


def _integers(values: Sequence[int]) -> Array:
    """As int64; what does not fit there is -1, which no run may be."""
    return np.array([value if 0 <= value < SEQ_END else -1 for value in values], dtype=np.int64)
