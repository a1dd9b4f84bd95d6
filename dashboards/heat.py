"""The heatmap as it is sent: one choice of metric is a channel, its cells small codes, and of those what has changed.

Up to :data:`CELLS_MAX` GPUs a cell is a GPU, beyond that a node. A channel is computed and encoded only while somebody
looks at it, once for all who do.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboards.fleet import HEAT_METRICS, Array, FleetState, HeatMetric

CELLS_MAX = 4_096
"""Up to here the heatmap has a cell for each GPU, beyond that a worst and a mean for each node: more cells than that
are smaller than a fingertip on any wall."""
FOLDS = ("worst", "mean")
"""What a cell of several GPUs shows of them."""
SPAN_TIMES_MAX = 4.0
"""The codes span the metric's usual range, and what is beyond it up to so many times that range: one reading of 1e30
must not make all others look alike."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One choice of the heatmap."""

    metric: str
    fold: str

    def __str__(self) -> str:
        return f"{self.metric}:{self.fold}"


CHANNELS = {str(channel): channel for channel in (Channel(m.name, fold) for m in HEAT_METRICS for fold in FOLDS)}
"""All of them, by the name under which a page asks."""


@dataclass(frozen=True, slots=True)
class Codes:
    """How numbers become codes: 0 to ``top`` span the range, and what no number can say stands above."""

    kind: str
    top: int
    stale: int
    negative_infinity: int
    positive_infinity: int
    nan: int
    missing: int


FINE = Codes("<u2", 65_000, 65_531, 65_532, 65_533, 65_534, 65_535)
"""For cells that are GPUs, where there is room to write the number into one."""
COARSE = Codes("u1", 250, 251, 252, 253, 254, 255)
"""For cells that are nodes: four times as many steps as there are shades."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which cell is which, as it was sent: ``order`` are the fleet's slots, cell by cell."""

    revision: int
    compactions: int
    order: Array
    starts: Array

    @classmethod
    def of(cls, fleet: FleetState) -> "Layout":
        """The layout of the fleet as it is now."""
        order = fleet.order()
        nodes = fleet.columns.node[order]
        starts = np.flatnonzero(np.diff(nodes, prepend=-1)) if len(nodes) else np.empty(0, np.int64)
        return cls(fleet.revision, fleet.compactions, order, starts)

    @property
    def per_gpu(self) -> bool:
        """Whether a cell is a GPU."""
        return len(self.order) <= CELLS_MAX

    def event(self, fleet: FleetState) -> dict[str, Any]:
        """The layout for the page. Cells are sorted by node and GPU."""
        nodes = fleet.columns.node[self.order]
        told: dict[str, Any] = {
            "revision": self.revision,
            "cells": "gpus" if self.per_gpu else "nodes",
            "gpus": len(self.order),
            "nodes": [fleet.nodes[node] for node in nodes[self.starts]],
            "sizes": np.diff(self.starts, append=len(nodes)).tolist(),
        }
        if self.per_gpu:
            told["gpu"] = fleet.columns.gpu[self.order].tolist()
            told["uuid"] = fleet.uuids(self.order)
        return told


class HeatCells:
    """The cells of one channel as they were last sent."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._row = next(at for at, metric in enumerate(HEAT_METRICS) if metric.name == channel.metric)
        self._layout: Layout | None = None
        self._span = (0.0, 0.0)
        self._codes: Array = np.empty(0, np.uint8)

    def whole(self, fleet: FleetState, layout: Layout, now: float) -> dict[str, Any]:
        """All cells: as they were last sent, or, where nobody has looked yet, as they are at ``now`` (UTC seconds)."""
        if self._layout is not layout:
            self._compute(fleet, layout, now)
        return self._head(layout) | {"codes": _base64(self._codes)}

    def changes(self, fleet: FleetState, layout: Layout, now: float) -> dict[str, Any]:
        """The cells that have changed since the last time, or all of them where that is shorter."""
        before, span, known = self._codes, self._span, self._layout
        self._compute(fleet, layout, now)
        if known is layout and span == self._span:
            changed = before != self._codes
            if len(changed) // 8 + int(changed.sum()) * self._codes.itemsize < self._codes.nbytes:
                told = {"changed": _base64(np.packbits(changed, bitorder="little"))}
                return self._head(layout) | told | {"codes": _base64(self._codes[changed])}
        return self._head(layout) | {"codes": _base64(self._codes)}

    def _head(self, layout: Layout) -> dict[str, Any]:
        low, high = self._span
        named = {"metric": self.channel.metric, "fold": self.channel.fold, "revision": layout.revision}
        return named | {"bits": self._codes.itemsize * 8, "from": low, "to": high}

    def _compute(self, fleet: FleetState, layout: Layout, now: float) -> None:
        metric, columns = HEAT_METRICS[self._row], fleet.columns
        values, valid = columns.values[self._row, layout.order], columns.valid[self._row, layout.order]
        stale = fleet.stale(now)[layout.order]
        if not layout.per_gpu:
            seen = valid & ~stale
            fold = worst_of if self.channel.fold == "worst" else mean_of
            values, valid = fold(values, seen, layout.starts, metric)
            stale = np.logical_and.reduceat(stale, layout.starts)
        usual = (metric.low, fleet.power_limit_watts or metric.high if metric.name == "power_watts" else metric.high)
        if self._layout is not layout:
            self._span = usual
        self._layout = layout
        self._span = widened(self._span, usual, values[valid & ~stale])
        self._codes = coded(values, valid, stale, self._span, FINE if layout.per_gpu else COARSE)


def widened(span: tuple[float, float], usual: tuple[float, float], values: Array) -> tuple[float, float]:
    """``span`` with room for ``values``, in steps of a tenth of the usual range, up to a bound."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return span
    width = usual[1] - usual[0]
    step, room = width / 10.0, (SPAN_TIMES_MAX - 1.0) * width
    least, most = max(float(finite.min()), usual[0] - room), min(float(finite.max()), usual[1] + room)
    low = span[0] if least >= span[0] else usual[0] - step * float(np.ceil((usual[0] - least) / step))
    high = span[1] if most <= span[1] else usual[1] + step * float(np.ceil((most - usual[1]) / step))
    return low, high


def coded(values: Array, valid: Array, stale: Array, span: tuple[float, float], codes: Codes) -> Array:
    """Numbers as codes. What is beyond the span stands at its end; what is stale has no number."""
    low, high = span
    finite = valid & np.isfinite(values)
    found = np.full(values.shape, codes.missing, codes.kind)
    scale = codes.top / (high - low) if high > low else 0.0
    found[finite] = np.round((np.clip(values[finite].astype(np.float64), low, high) - low) * scale)
    found[valid & np.isnan(values)] = codes.nan
    found[valid & np.isposinf(values)] = codes.positive_infinity
    found[valid & np.isneginf(values)] = codes.negative_infinity
    found[stale] = codes.stale
    return found


def worst_of(values: Array, valid: Array, starts: Array, metric: HeatMetric) -> tuple[Array, Array]:
    """Each node's worst value; a NaN is worse than any number."""
    ufunc, fill = (np.maximum, -np.inf) if metric.worst_is_high else (np.minimum, np.inf)
    # maximum and minimum hand a NaN on, which is what is wanted here.
    return ufunc.reduceat(np.where(valid, values, fill), starts), np.logical_or.reduceat(valid, starts)


def mean_of(values: Array, valid: Array, starts: Array, metric: HeatMetric) -> tuple[Array, Array]:
    """Each node's mean."""
    del metric
    sums = np.add.reduceat(np.where(valid, values, 0.0).astype(np.float64), starts)
    counts = np.add.reduceat(valid.astype(np.int64), starts)
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0), counts > 0


def _base64(array: Array) -> str:
    return base64.b64encode(array.tobytes()).decode()
