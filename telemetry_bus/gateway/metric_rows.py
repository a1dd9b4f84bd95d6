"""From samples, one number each, to rows: all of a GPU's numbers at one instant are one row. Arrays in, arrays out.

Absent, zero and NaN stay three things: Prometheus's staleness marker and DCGM's blanks are absent, another NaN is one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from telemetry_bus.cells import TIME_MAX
from telemetry_bus.frames import Array, batch_of
from telemetry_bus.gateway.latest_rows import LatestRows
from telemetry_bus.gateway.metric_mapping import (
    BLANK_FP64,
    BLANK_INT32,
    BLANK_INT64,
    BLANKS,
    COLUMNS,
    FREE_MIB,
    GAUGES,
    RESERVED_MIB,
    Gpu,
    GpuSeries,
    JobSeries,
    Series,
    Unmapped,
)
from telemetry_bus.gateway.pieces import Piece, pieces_of
from telemetry_bus.metric_names import GPU_METRIC_NAMES, GPU_METRICS

STALE_BITS = 0x7FF0_0000_0000_0002
"""The NaN with which Prometheus marks a series that has ended; it is a marker, and no value."""
STALE = np.uint64(STALE_BITS).view(np.float64).item()
FLOAT32_MAX = float(np.finfo(np.float32).max)
_GAUGE = np.array([name in GAUGES for name in COLUMNS])
_TOTAL = COLUMNS.index("memory_total_mib")
_PARTS = [COLUMNS.index(name) for name in ("memory_used_mib", FREE_MIB, RESERVED_MIB)]
_ARROW = {metric.name: metric.arrow for metric in GPU_METRICS}
_INT64 = np.array([_ARROW.get(name) == "int64" for name in COLUMNS])
_FLOAT32 = np.array([_ARROW.get(name, "float") == "float" for name in COLUMNS])


@dataclass(frozen=True, slots=True)
class Samples:
    """What a request brought: ``counts[i]`` samples of ``series[i]``, in that order in ``seconds`` and ``values``.

    ``unmapped`` is what had no sample to begin with, as a histogram.
    """

    series: Sequence[Series]
    counts: Sequence[int]
    seconds: Array
    values: Array
    unmapped: Counter[Unmapped] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Placed:
    """``accepted`` counts samples that stand in ``pieces``, ``absent`` those that say "no value", and both are fine."""

    pieces: list[Piece]
    accepted: int
    absent: int
    unmapped: Counter[Unmapped]


def place(
    samples: Samples, now: float, region: str | None, job: str | None = None, latest: LatestRows | None = None
) -> Placed:
    """The rows of ``samples``; with ``job``, rows of that job and nothing else.

    With ``latest`` a row repeats what another request said of the same GPU at the same instant.
    """
    series = samples.series if job is None else [_of_job(item, job) for item in samples.series]
    unmapped = Counter(samples.unmapped)
    for item, count in zip(series, samples.counts, strict=True):
        if type(item) is Unmapped:
            unmapped[item] += count
    number = np.repeat(np.arange(len(series)), np.asarray(samples.counts, dtype=np.int64))
    mapped = np.array([type(item) is not Unmapped for item in series], dtype=bool)[number]
    in_time = (samples.seconds >= 0) & (samples.seconds <= TIME_MAX)
    stale = samples.values.view(np.uint64) == STALE_BITS
    _count(unmapped, Unmapped.BAD_TIME, mapped & ~in_time)
    number, seconds, values = (array[mapped & in_time & ~stale] for array in (number, samples.seconds, samples.values))
    of_gpu = np.array([type(item) is GpuSeries for item in series], dtype=bool)[number]
    placed = Placed([], 0, int((mapped & in_time & stale).sum()), unmapped)
    gpus = _place_gpus(series, number[of_gpu], seconds[of_gpu], values[of_gpu], now, region, latest)
    jobs = _place_jobs(series, number[~of_gpu], seconds[~of_gpu], values[~of_gpu], now, region)
    return _sum(placed, gpus, jobs)


def _of_job(item: Series, job: str) -> Series:
    if isinstance(item, Unmapped):
        return item
    return item if isinstance(item, JobSeries) and item.job == job else Unmapped.OTHER_JOB


def _count(unmapped: Counter[Unmapped], reason: Unmapped, which: Array) -> None:
    if count := int(which.sum()):
        unmapped[reason] += count


def _sum(*parts: Placed) -> Placed:
    unmapped: Counter[Unmapped] = Counter()
    for part in parts:
        unmapped.update(part.unmapped)
    pieces = [piece for part in parts for piece in part.pieces]
    return Placed(pieces, sum(part.accepted for part in parts), sum(part.absent for part in parts), unmapped)


@dataclass(frozen=True, slots=True)
class _GpuTable:
    """The GPUs of a request, sorted, and what each series says of which: arrays by series, or by GPU."""

    gpus: list[Gpu]
    sources: list[str]
    source_of: Array
    """By GPU: an index into ``sources``."""
    gpu_of: Array
    """By series: an index into ``gpus``; nothing for a series of something else. So are the two below."""
    column_of: Array
    scale_of: Array


def _gpu_table(series: Sequence[Series]) -> _GpuTable:
    known = {item.gpu for item in series if type(item) is GpuSeries}
    gpus = sorted(known, key=lambda gpu: (gpu.node, gpu.gpu, gpu.instance or "", gpu.uuid or ""))
    index = {gpu: number for number, gpu in enumerate(gpus)}
    nodes = list(dict.fromkeys(gpu.node for gpu in gpus))
    node_index = {node: number for number, node in enumerate(nodes)}
    of_gpu = [(index[s.gpu], s.column, s.scale) if type(s) is GpuSeries else (0, 0, 1.0) for s in series]
    gpu_of, column_of, scale_of = zip(*of_gpu, strict=True)
    return _GpuTable(
        gpus,
        [f"{node}/gpu" for node in nodes],
        np.array([node_index[gpu.node] for gpu in gpus]),
        np.array(gpu_of),
        np.array(column_of),
        np.array(scale_of),
    )


def _place_gpus(
    series: Sequence[Series],
    number: Array,
    seconds: Array,
    values: Array,
    now: float,
    region: str | None,
    latest: LatestRows | None,
) -> Placed:
    if not number.size:
        return Placed([], 0, 0, Counter())
    table = _gpu_table(series)
    column = table.column_of[number]
    blank = _blank(values, _GAUGE[column])
    values = values * table.scale_of[number]
    unusable = ~blank & ~_fits(values, _INT64[column], _FLOAT32[column])
    unmapped: Counter[Unmapped] = Counter()
    _count(unmapped, Unmapped.BAD_VALUE, unusable)
    kept = ~blank & ~unusable
    cells = _GpuCells(table.gpu_of[number][kept], column[kept], seconds[kept], values[kept])
    pieces = _gpu_pieces(table, cells, now, region, latest) if kept.any() else []
    return Placed(pieces, int(kept.sum()), int(blank.sum()), unmapped)


def _blank(values: Array, gauge: Array) -> Array:
    """Where DCGM says that it has no value."""
    blank: Array = values == BLANK_INT64
    for first in (BLANK_FP64, BLANK_INT32):
        blank |= gauge & (values >= first) & (values < first + BLANKS)
    return blank


def _fits(values: Array, int64: Array, float32: Array) -> Array:
    """Whether the column's type holds the value: no finite number becomes infinite, none loses its fraction."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        whole = finite & (values == np.floor(values)) & (np.abs(values) < 2.0**63)
        return np.where(int64, whole, ~(float32 & finite & (np.abs(values) > FLOAT32_MAX)))


@dataclass(frozen=True, slots=True)
class _GpuCells:
    """One cell a sample: whose, of which column, when, and what."""

    gpu: Array
    column: Array
    seconds: Array
    values: Array


def _gpu_pieces(
    table: _GpuTable, cells: _GpuCells, now: float, region: str | None, latest: LatestRows | None
) -> list[Piece]:
    order = np.lexsort((cells.gpu, cells.seconds))
    gpu, seconds = cells.gpu[order], cells.seconds[order]
    begins = np.concatenate(([True], (gpu[1:] != gpu[:-1]) | (seconds[1:] != seconds[:-1])))
    row_gpu, row_seconds = gpu[begins], seconds[begins]
    values, valid = _table_of(np.cumsum(begins) - 1, cells.column[order], cells.values[order])
    if latest is not None:
        latest.join(table.gpus, row_gpu, row_seconds, values, valid)
    _add_total(values, valid)
    columns: dict[str, Any] = {
        name: _arrow(name, values[:, number], ~valid[:, number])
        for number, name in enumerate(GPU_METRIC_NAMES)
        if valid[:, number].any()
    }
    columns |= {"time": row_seconds, "simulated": np.zeros(len(row_gpu), dtype=bool)}
    columns |= _identity(table.gpus, row_gpu, region)
    batch = batch_of("gpu/1", columns)
    return list(pieces_of("gpu/1", batch, row_seconds, table.source_of[row_gpu], table.sources, now))


def _table_of(row: Array, column: Array, values: Array) -> tuple[Array, Array]:
    """Values and whether they are there, rows by columns; of two values of one cell the later one stands."""
    cells = np.zeros((row[-1] + 1, len(COLUMNS)))
    valid = np.zeros(cells.shape, dtype=bool)
    cells[row, column] = values
    valid[row, column] = True
    return cells, valid


def _add_total(values: Array, valid: Array) -> None:
    """All of a GPU's memory is used, free or reserved: where the three are here and the sum is not, it is made."""
    makes = valid[:, _PARTS].all(axis=1) & ~valid[:, _TOTAL]
    values[makes, _TOTAL] = values[makes][:, _PARTS].sum(axis=1)
    valid[makes, _TOTAL] = True


def _arrow(name: str, cells: Array, absent: Array) -> "pa.Array[Any]":
    kinds = {"float": np.float32, "double": np.float64, "int64": np.int64}
    array: pa.Array[Any] = pa.array(cells.astype(kinds[_ARROW[name]]), mask=absent, from_pandas=False)
    return array


def _identity(gpus: Sequence[Gpu], row_gpu: Array, region: str | None) -> dict[str, Any]:
    rows = pa.array(row_gpu, pa.int64())
    return {
        "region": pa.array([region], pa.string()).take(pa.array(np.zeros(len(row_gpu)), pa.int64())),
        "node": pa.array([gpu.node for gpu in gpus], pa.string()).take(rows),
        "gpu": pa.array([gpu.gpu for gpu in gpus], pa.int32()).take(rows),
        "instance": pa.array([gpu.instance for gpu in gpus], pa.string()).take(rows),
        "uuid": pa.array([gpu.uuid for gpu in gpus], pa.string()).take(rows),
    }


def _place_jobs(
    series: Sequence[Series], number: Array, seconds: Array, values: Array, now: float, region: str | None
) -> Placed:
    if not number.size:
        return Placed([], 0, 0, Counter())
    # A job's series has one sample mostly, since its step is part of it: nothing is gained by a table.
    items = [item for item in (series[i] for i in number.tolist()) if isinstance(item, JobSeries)]
    keys = [(item.job, item.attempt, item.rank) for item in items]
    known = sorted(set(keys))
    index = {key: at for at, key in enumerate(known)}
    columns: dict[str, Any] = {
        "time": seconds,
        "region": [region] * len(items),
        "value": pa.array(values, from_pandas=False),
        **{
            name: [getattr(item, name) for item in items]
            for name in ("job", "attempt", "rank", "step", "name", "layer")
        },
    }
    batch = batch_of("metric/1", columns)
    sources = [f"{job}/{attempt}/{rank}/metric" for job, attempt, rank in known]
    owner = np.array([index[key] for key in keys])
    pieces = list(pieces_of("metric/1", batch, seconds, owner, sources, now))
    return Placed(pieces, len(items), 0, Counter())
