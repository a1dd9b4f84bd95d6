"""The fleet now: the newest reading of every GPU, as arrays.

Pure: frames come in, arrays come out; no loop over rows. A GPU is a *slot*. A (node, GPU number) pair finds its slot in
a table of nodes by GPU numbers; only the distinct nodes of a frame are looked up one by one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry_bus.frames import Frame
from telemetry_bus.text_keys import KeyTable, column_keys

Array = np.ndarray[Any, np.dtype[Any]]

GPUS_MAX = 524_288
"""Leviathan has 300,000 GPUs; each costs some 150 bytes here and its UUID."""
GPUS_PER_NODE_MAX = 1_024
"""A real node has 8 to 72 GPUs; a simulated one may have them all."""
UUID_BYTES_MAX = 64
"""A GPU's UUID has 40 characters, an old one of a MIG instance some 50; what is longer is shown cut."""
STALE_SECONDS = 10.0
"""Ten times the usual sampling period: a GPU that has said nothing for so long is not shown as if it had."""
REGIONS_MAX = 256
"""A company has tens."""
FORGET_SECONDS = 900.0
"""A GPU that has said nothing for a quarter of an hour has left the fleet; its silence was a finding long before."""


@dataclass(frozen=True, slots=True)
class HeatMetric:
    """One choice of the heatmap. ``low`` and ``high`` span the colours; ``worst_is_high`` says which end is bad: of a
    GPU that trains, a high temperature, but a low utilization, power or use of memory."""

    name: str
    title: str
    unit: str
    low: float
    high: float
    worst_is_high: bool


HEAT_METRICS: tuple[HeatMetric, ...] = (
    HeatMetric("gpu_utilization_percent", "Utilization", "%", 0.0, 100.0, False),
    HeatMetric("power_watts", "Power", "W", 0.0, 1000.0, False),
    HeatMetric("temperature_celsius", "Temperature", "°C", 20.0, 95.0, True),
    HeatMetric("memory_used_ratio", "Memory used", "", 0.0, 1.0, False),
    HeatMetric("tensor_active_ratio", "Tensor active", "", 0.0, 1.0, False),
)


@dataclass(slots=True)
class Columns:
    """The slots' arrays, each of length ``capacity``. Where ``valid`` is False the value is absent."""

    node: Array
    gpu: Array
    values: Array
    valid: Array
    last_seen: Array
    simulated: Array
    uuid: Array
    region: Array

    @classmethod
    def empty(cls, capacity: int) -> "Columns":
        """Room for ``capacity`` GPUs."""
        shape = (len(HEAT_METRICS), capacity)
        return cls(
            node=np.zeros(capacity, np.int32),
            gpu=np.zeros(capacity, np.int32),
            values=np.full(shape, np.nan, np.float32),
            valid=np.zeros(shape, np.bool_),
            last_seen=np.full(capacity, -np.inf),
            simulated=np.zeros(capacity, np.bool_),
            uuid=np.zeros(capacity, f"S{UUID_BYTES_MAX}"),
            region=np.full(capacity, -1, np.int16),
        )

    def taken(self, slots: Array, capacity: int) -> "Columns":
        """These ``slots`` only, in that order, in room for ``capacity``."""
        fresh = Columns.empty(capacity)
        count = len(slots)
        for name in ("node", "gpu", "last_seen", "simulated", "uuid", "region"):
            getattr(fresh, name)[:count] = getattr(self, name)[slots]
        fresh.values[:, :count] = self.values[:, slots]
        fresh.valid[:, :count] = self.valid[:, slots]
        return fresh


class FleetState:
    """The newest reading of every GPU. ``revision`` grows whenever GPUs come or go."""

    def __init__(self, gpus_max: int = GPUS_MAX) -> None:
        self.revision = 0
        self.compactions = 0
        """How often slots were given to other GPUs."""
        self.count = 0
        self.rows_over_limit = 0
        """Rows that were left out because the fleet, or a node, is larger than this view holds."""
        self.instance_rows = 0
        """Rows of MIG instances: the heatmap shows whole GPUs."""
        self.power_limit_watts: float | None = None
        """The highest enforced power limit that any GPU has told: the top of that colour span."""
        self.nodes: list[str] = []
        self.regions: list[str] = []
        """At most :data:`REGIONS_MAX` names; GPUs of others count for no region."""
        self.columns = Columns.empty(64)
        self._gpus_max = gpus_max
        self._node_table = KeyTable()
        self._slots = np.full((8, 8), -1, np.int32)
        self._order: tuple[int, Array] = (-1, np.empty(0, np.int64))

    def observe(self, frame: Frame) -> None:
        """Take a ``gpu/1`` frame, rows in any order; a row older than what is known is left out."""
        whole = np.asarray(frame.batch.column("instance").is_null())
        gpus, _ = frame.numbers("gpu")
        in_range = (gpus >= 0) & (gpus < GPUS_PER_NODE_MAX)
        self.instance_rows += int((~whole).sum())
        self.rows_over_limit += int((whole & ~in_range).sum())
        shown = whole & in_range
        rows: Array | slice = slice(None) if shown.all() else np.flatnonzero(shown)
        if not shown.any():
            return
        slots = self._slots_of(frame, gpus, rows)
        times = frame.times()[rows]
        newest = (slots >= 0) & (times >= np.where(slots >= 0, self.columns.last_seen[slots], np.inf))
        if not newest.all():
            rows = np.flatnonzero(shown)[newest]
            slots, times = slots[newest], times[newest]
        self._write(frame, slots, rows, times)

    def _slots_of(self, frame: Frame, gpus: Array, rows: Array | slice) -> Array:
        encoded: Any = pc.dictionary_encode(frame.batch.column("node"))
        ids = self._nodes_of(encoded.dictionary)
        self._widen(int(gpus[rows].max()) + 1)
        nodes = ids[encoded.indices.to_numpy(zero_copy_only=False)[rows]]
        slots = self._slots[nodes, gpus[rows]].astype(np.int64)
        if (slots < 0).any():
            self._add(nodes, gpus[rows])
            slots = self._slots[nodes, gpus[rows]].astype(np.int64)
            self.rows_over_limit += int((slots < 0).sum())
        return np.asarray(slots)

    def _nodes_of(self, names: Any) -> Array:
        """The number of each node in an Arrow text column; who is new gets the next one."""
        keys = column_keys(names)
        nodes = self._node_table.find(keys)
        for at in np.flatnonzero(nodes < 0).tolist():
            nodes[at] = len(self.nodes)
            self._node_table.put(int(keys[at]), len(self.nodes))
            self.nodes.append(names[at].as_py())
            if len(self.nodes) > len(self._slots):
                self._slots = np.pad(self._slots, ((0, len(self._slots)), (0, 0)), constant_values=-1)
        return nodes

    def _widen(self, width: int) -> None:
        held = self._slots.shape[1]
        if width > held:
            wanted = 1 << (width - 1).bit_length()
            self._slots = np.pad(self._slots, ((0, 0), (0, wanted - held)), constant_values=-1)

    def _add(self, nodes: Array, gpus: Array) -> None:
        new = self._slots[nodes, gpus] < 0
        pairs = np.unique(np.stack([nodes[new], gpus[new]]), axis=1)[:, : self._gpus_max - self.count]
        count = self.count + pairs.shape[1]
        if count > len(self.columns.gpu):
            self.columns = self.columns.taken(np.arange(self.count), max(count, 2 * len(self.columns.gpu)))
        self._slots[pairs[0], pairs[1]] = np.arange(self.count, count)
        self.columns.node[self.count : count], self.columns.gpu[self.count : count] = pairs
        self.count = count
        self.revision += 1

    def _write(self, frame: Frame, slots: Array, rows: Array | slice, times: Array) -> None:
        columns = self.columns
        columns.last_seen[slots] = times
        columns.simulated[slots] = frame.numbers("simulated")[0][rows]
        columns.uuid[slots] = _texts_of(frame.batch.column("uuid"))[rows]
        columns.region[slots] = self._regions_of(frame, rows)
        for at, metric in enumerate(HEAT_METRICS):
            values, valid = _heat(frame, metric.name)
            columns.values[at, slots] = values[rows]
            columns.valid[at, slots] = valid[rows]
        limits, known = frame.numbers("power_limit_watts")
        highest = float(np.max(limits, where=known & np.isfinite(limits), initial=0.0))
        if highest > (self.power_limit_watts or 0.0):
            self.power_limit_watts = highest
            self.revision += 1

    def _regions_of(self, frame: Frame, rows: Array | slice) -> Array:
        encoded: Any = pc.dictionary_encode(frame.batch.column("region"))
        known = [self._region(name) for name in encoded.dictionary.to_pylist()]
        codes: Array = np.array([*known, -1], np.int16)[np.asarray(encoded.indices.fill_null(len(known)))[rows]]
        return codes

    def _region(self, name: str) -> int:
        if name not in self.regions:
            if len(self.regions) >= REGIONS_MAX:
                return -1
            self.regions.append(name)
        return self.regions.index(name)

    def gpus_by_region(self, now: float) -> tuple[dict[str, int], dict[str, int]]:
        """How many GPUs of each region are known, and how many of them have reported lately."""
        codes = self.columns.region[: self.count]
        named = codes >= 0
        room = len(self.regions)
        counts = [np.bincount(codes[which], minlength=room) for which in (named, named & ~self.stale(now))]
        known, fresh = (dict(zip(self.regions, count.tolist(), strict=True)) for count in counts)
        return known, fresh

    def uuids(self, slots: Array) -> list[str | None]:
        """The UUIDs of these slots; ``None`` where none was told."""
        return [text.decode("utf-8", "replace") or None for text in self.columns.uuid[slots].tolist()]

    def order(self) -> Array:
        """The slots, sorted by node (``node-2`` before ``node-10``) and GPU."""
        if self._order[0] != self.revision:
            rank = np.empty(len(self.nodes), np.int64)
            rank[np.array(sorted(range(len(self.nodes)), key=lambda at: natural(self.nodes[at])), np.int64)] = (
                np.arange(len(self.nodes))
            )
            slots = np.arange(self.count)
            self._order = self.revision, slots[np.lexsort((self.columns.gpu[slots], rank[self.columns.node[slots]]))]
        return self._order[1]

    def stale(self, now: float) -> Array:
        """For each slot, whether it has said nothing for :data:`STALE_SECONDS`."""
        return np.asarray(now - self.columns.last_seen[: self.count] > STALE_SECONDS)

    def forget(self, now: float) -> None:
        """Free what has been silent for :data:`FORGET_SECONDS`."""
        kept = np.flatnonzero(now - self.columns.last_seen[: self.count] <= FORGET_SECONDS)
        if len(kept) == self.count:
            return
        columns = self.columns.taken(kept, max(64, len(kept)))
        count = len(kept)
        used = np.unique(columns.node[:count])
        self.nodes = [self.nodes[node] for node in used]
        self._node_table = KeyTable()
        for node, key in enumerate(column_keys(pa.array(self.nodes, pa.string())).tolist()):
            self._node_table.put(key, node)
        columns.node[:count] = np.searchsorted(used, columns.node[:count])
        self._slots = np.full((max(8, len(used)), self._slots.shape[1]), -1, np.int32)
        self._slots[columns.node[:count], columns.gpu[:count]] = np.arange(count)
        self.columns, self.count = columns, count
        self.revision += 1
        self.compactions += 1


def _texts_of(column: Any) -> Array:
    """A text column as bytes, absent as empty. Texts of one length, as UUIDs are, are taken as they lie in memory."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    length = int(ends[1]) - int(ends[0]) if len(column) else 0
    if data is not None and 0 < length <= UUID_BYTES_MAX and not column.null_count and (np.diff(ends) == length).all():
        return np.frombuffer(data, f"S{length}", len(column), int(ends[0]))
    return np.array([(text or "").encode() for text in column.to_pylist()], f"S{UUID_BYTES_MAX}")


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which digits count as numbers."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for letter in [*name, ""]:
        if letter.isdecimal() and letter.isascii():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, letter))
    return parts


def _heat(frame: Frame, name: str) -> tuple[Array, Array]:
    if name != "memory_used_ratio":
        return frame.numbers(name)
    used, used_valid = frame.numbers("memory_used_mib")
    total, total_valid = frame.numbers("memory_total_mib")
    valid = used_valid & total_valid & ~(total == 0)
    return np.divide(used, total, out=np.full(len(used), np.nan, np.float32), where=valid), valid
