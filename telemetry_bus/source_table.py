"""What is known of each source, as arrays: one row a source, whatever the number of its boots.

Pure. Only sources that are new are looked at one by one; a mapping of names is made where somebody asks for one.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np

from telemetry_bus.manifest import Array

REGIONS_MAX = 1_024
"""A company has tens; what is beyond shares one name."""
OTHER_REGION = "(other regions)"

_ROW = np.dtype(
    [("seen", "f8"), ("boots", "i4"), ("offset", "f8"), ("simulated", "?"), ("region", "i2"), ("used", "?")]
)


class SourceTable:
    """Rows by name. ``seen`` is the bus's time (UTC seconds) of the newest frame, ``offset`` the seconds by which the
    source's clock is ahead (0 within the tolerance), ``region`` an index of :attr:`region_names` (-1: none is said)."""

    def __init__(self) -> None:
        self.rows = np.zeros(64, dtype=_ROW)
        self.names: list[str] = []
        self.region_names: list[str] = []
        self.region_seen: dict[str, float] = {}
        """The bus's time of each region's newest frame."""
        self._regions: dict[str, int] = {}
        self._index: dict[str, int] = {}
        self._free: list[int] = []
        self._is_shared = False

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def snapshot(self) -> "SourceTable":
        """The table as it is now. Names are copied only once sources come or go: at a tick that costs a millisecond."""
        table = SourceTable()
        table.rows, table.region_seen = self.rows.copy(), dict(self.region_seen)
        table.names, table._index, table.region_names = self.names, self._index, self.region_names
        self._is_shared = table._is_shared = True
        return table

    def _own(self) -> None:
        if self._is_shared:
            self.names, self._index, self.region_names = list(self.names), dict(self._index), list(self.region_names)
            self._is_shared = False

    def adopt(self, name: str) -> int:
        """The row of ``name``, to which one more boot belongs from now on."""
        at = self._index.get(name)
        if at is None:
            self._own()
            at = self._index[name] = self._room()
            self.names[at] = name
            self.rows[at] = (-np.inf, 0, 0.0, False, -1, True)
        self.rows["boots"][at] += 1
        return at

    def release(self, at: int) -> None:
        """One boot of the source is forgotten; with the last one the source is."""
        self.rows["boots"][at] -= 1
        if not self.rows["boots"][at]:
            self._own()
            del self._index[self.names[at]]
            self.rows["used"][at] = False
            self._free.append(at)

    def row(self, name: str) -> "np.void | None":
        """What is known of ``name``."""
        at = self._index.get(name)
        return None if at is None else self.rows[at]

    def region_at(self, name: str | None, time: float) -> int:
        """The index of a region whose newest frame the bus has taken at ``time``; -1 for none."""
        if not name:
            return -1
        if name not in self._regions and len(self.region_names) >= REGIONS_MAX - 1:
            name = OTHER_REGION
        if name not in self._regions:
            self._own()
            self._regions[name] = len(self.region_names)
            self.region_names.append(name)
        self.region_seen[name] = time
        return self._regions[name]

    def used(self) -> Array:
        """The rows that stand for a source."""
        return np.flatnonzero(self.rows["used"][: len(self.names)])

    def _room(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self.names) == len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros(len(self.rows), dtype=_ROW)])
        self.names.append("")
        return len(self.names) - 1


class LastSeen(Mapping[str, float]):
    """By source, the bus's time of its newest frame; a view, cheap to ask for what is silent."""

    def __init__(self, table: SourceTable) -> None:
        self._table = table

    def __getitem__(self, name: str) -> float:
        row = self._table.row(name)
        if row is None:
            raise KeyError(name)
        return float(row["seen"])

    def __iter__(self) -> Iterator[str]:
        return (self._table.names[at] for at in self._table.used().tolist())

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def before(self, time: float) -> list[str]:
        """The sources that were not seen at ``time`` or later."""
        used = self._table.used()
        return [self._table.names[at] for at in used[self._table.rows["seen"][used] < time].tolist()]


class ClockOffsets(Mapping[str, float]):
    """By source, the seconds by which its clock is ahead; only of those beyond the tolerance."""

    def __init__(self, table: SourceTable) -> None:
        self._table = table

    def __getitem__(self, name: str) -> float:
        row = self._table.row(name)
        if row is None or not row["offset"]:
            raise KeyError(name)
        return float(row["offset"])

    def __iter__(self) -> Iterator[str]:
        return (self._table.names[at] for at in self._wrong().tolist())

    def __len__(self) -> int:
        return len(self._wrong())

    def _wrong(self) -> Array:
        used = self._table.used()
        wrong: Any = used[self._table.rows["offset"][used] != 0]
        return np.asarray(wrong)


class SimulatedSources(Container[str]):
    """The sources whose newest rows are simulated."""

    def __init__(self, table: SourceTable) -> None:
        self._table = table

    def __contains__(self, name: object) -> bool:
        row = self._table.row(str(name))
        return row is not None and bool(row["simulated"])


class SourceRegions(Mapping[str, str]):
    """By source, the region that it has said it is in."""

    def __init__(self, table: SourceTable) -> None:
        self._table = table

    def __getitem__(self, name: str) -> str:
        row = self._table.row(name)
        if row is None or row["region"] < 0:
            raise KeyError(name)
        return self._table.region_names[int(row["region"])]

    def __iter__(self) -> Iterator[str]:
        used = self._table.used()
        return (self._table.names[at] for at in used[self._table.rows["region"][used] >= 0].tolist())

    def __len__(self) -> int:
        return sum(1 for _ in self)
