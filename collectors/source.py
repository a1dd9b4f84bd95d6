"""What a source of a node is, and what one reading of it gives: rows of GPUs, rows of links, events.

A source is opened with ``async with`` and read with ``await source.read(now)``. Opening may fail, with an error that
says what to do; reading never raises for what a driver, a GPU or the kernel does: a field that cannot be read is null
and counted with its reason, a GPU that is gone has no row, and what happened is an event.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa

from collectors.errors import FieldFailure
from telemetry_bus.metric_names import GPU_METRICS, LINK_METRICS, Metric
from telemetry_bus.schemas import EventKind

Array = np.ndarray[Any, np.dtype[Any]]

METRICS: dict[str, Metric] = {metric.name: metric for metric in GPU_METRICS}
LINKS: dict[str, Metric] = {metric.name: metric for metric in LINK_METRICS}
_DTYPES = {"float": np.float32, "double": np.float64, "int64": np.int64}


@dataclass(frozen=True, slots=True)
class Column:
    """One metric over rows: ``values`` and ``valid``, both of shape ``(rows,)``.

    Where ``valid`` is False the value is absent and what stands in ``values`` means nothing. A valid NaN is a NaN.
    """

    values: Array
    valid: Array

    @classmethod
    def of(cls, name: str, values: Sequence[float | None]) -> Self:
        """The column of metric ``name`` from Python numbers, ``None`` for absent, in the metric's own type."""
        kind = _DTYPES[(METRICS.get(name) or LINKS[name]).arrow]
        if None not in values:  # as nearly all columns of a healthy node are
            return cls(np.array(values, dtype=kind), np.ones(len(values), dtype=bool))
        valid = np.array([value is not None for value in values], dtype=bool)
        filled = [0 if value is None else value for value in values]
        return cls(np.array(filled, dtype=kind), valid)

    def to_arrow(self) -> "pa.Array[Any]":
        """The column with nulls where it is not valid; a NaN stays a NaN."""
        return pa.array(self.values, mask=None if self.valid.all() else ~self.valid, from_pandas=False)


@dataclass(frozen=True, slots=True)
class GpuRows:
    """Rows of ``gpu/1`` without time and region, which the agent adds. Rows of one node stand together.

    ``nodes`` says which nodes, in row order, with how many rows each. ``metrics`` maps names of
    :data:`~telemetry_bus.metric_names.GPU_METRICS` to columns; one that is missing is null in every row.
    ``instance`` is the text of a MIG instance, null for a whole GPU; ``None`` where there is no instance at all.
    """

    nodes: Sequence[tuple[str, int]]
    gpu: Array
    uuid: "pa.Array[Any]"
    simulated: bool
    metrics: Mapping[str, Column]
    instance: "pa.Array[Any] | None" = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.gpu)

    def columns(self, now: float, region: str | None) -> dict[str, Any]:
        """The columns of ``gpu/1`` for ``telemetry_bus.frames.batch_of``."""
        instance = {} if self.instance is None else {"instance": self.instance}
        return {
            "time": np.full(self.rows, now),
            "region": pa.repeat(pa.scalar(region, pa.string()), self.rows),
            "node": _node_column(self.nodes),
            "gpu": self.gpu,
            **instance,
            "uuid": self.uuid,
            "simulated": np.full(self.rows, self.simulated),
            **{name: column.to_arrow() for name, column in self.metrics.items()},
        }


@dataclass(frozen=True, slots=True)
class LinkRows:
    """Rows of ``link/1`` without time and region, which the agent adds: ports of a network, and NVLinks.

    ``kind`` is ``infiniband``, ``ethernet`` or ``nvlink``; ``device`` is the kernel's name of the card (``mlx5_0``,
    ``eth0``), of an NVLink that of its GPU (``gpu0``); ``gpu`` and ``uuid`` are null but for NVLinks. Rows of one node
    stand together. ``metrics`` maps names of :data:`~telemetry_bus.metric_names.LINK_METRICS` to columns.
    """

    nodes: Sequence[tuple[str, int]]
    kind: Sequence[str]
    device: Sequence[str]
    port: Sequence[int | None]
    gpu: Sequence[int | None]
    uuid: Sequence[str | None]
    simulated: bool
    metrics: Mapping[str, Column]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.kind)

    def columns(self, now: float, region: str | None) -> dict[str, Any]:
        """The columns of ``link/1`` for ``telemetry_bus.frames.batch_of``."""
        return {
            "time": np.full(self.rows, now),
            "region": pa.repeat(pa.scalar(region, pa.string()), self.rows),
            "node": _node_column(self.nodes),
            "kind": pa.array(self.kind, pa.string()),
            "device": pa.array(self.device, pa.string()),
            "port": pa.array(self.port, pa.int32()),
            "gpu": pa.array(self.gpu, pa.int32()),
            "uuid": pa.array(self.uuid, pa.string()),
            "simulated": np.full(self.rows, self.simulated),
            **{name: column.to_arrow() for name, column in self.metrics.items()},
        }


def _node_column(nodes: Sequence[tuple[str, int]]) -> "pa.Array[Any]":
    if len(nodes) == 1:
        return pa.repeat(pa.scalar(nodes[0][0], pa.string()), nodes[0][1])
    names, counts = [name for name, _ in nodes], [count for _, count in nodes]
    index: Array = np.repeat(np.arange(len(names)), counts)
    return pa.array(names, pa.string()).take(index)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row of ``event/1`` as a source tells it. ``detail`` becomes a JSON object.

    ``time`` is when it happened, UTC seconds; ``None`` stands for the time of the reading that tells it.
    """

    kind: EventKind
    node: str
    message: str
    simulated: bool
    gpu: int | None = None
    uuid: str | None = None
    code: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    time: float | None = None


@dataclass(frozen=True, slots=True)
class SourceReading:
    """What one read gave: rows (``None`` if there is no GPU to speak of), events, and failures by (field, reason)."""

    gpus: GpuRows | None
    events: Sequence[EventRow] = ()
    failures: Mapping[tuple[str, FieldFailure], int] = field(default_factory=Counter)
    links: LinkRows | None = None


class Source(Protocol):
    """A source of a node. The first reading of one of GPUs carries a ``node_inventory`` event for each of its nodes."""

    name: str
    """The name under which :mod:`collectors.registry` knows it."""
    period_seconds: float | None
    """How often it wants to be read; ``None``: at the agent's own pace."""
    urgent: asyncio.Event | None
    """Set by a source that wants to be read at once; the agent clears it before it reads. ``None``: it never does."""

    async def __aenter__(self) -> Self:
        """Open the source. Raises :class:`~collectors.errors.SourceUnavailable` if there is nothing to read."""
        ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it. It may be closed twice."""
        ...

    async def read(self, now: float) -> SourceReading:
        """Read everything once. ``now`` is UTC seconds. Raises nothing for what the driver or a GPU does."""
        ...

    def unreadable(self) -> Sequence[str]:
        """What it could not read and why, in words for a person; empty if there is nothing to say."""
        ...
