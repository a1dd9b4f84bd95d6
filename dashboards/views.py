"""What the page and the API show: plain objects made of the state, each computed once for all readers."""

import base64
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from dashboards.curves import Curve
from dashboards.fleet import HEAT_METRICS, Array, FleetState, HeatMetric
from dashboards.jobs import RATE_SECONDS, SILENT_SECONDS, Attempt, Job

CELLS_MAX = 4_096
"""Up to here the heatmap has a cell for each GPU, beyond that a worst and a mean for each node: more cells than that
are smaller than a fingertip on any wall."""
CODE_MISSING = 65_535
CODE_NAN = 65_534
CODE_POSITIVE_INFINITY = 65_533
CODE_NEGATIVE_INFINITY = 65_532
CODE_TOP = 65_000
"""Codes 0 to 65,000 span ``from`` to ``to``; the last four stand for what no number can say."""


def fleet_layout(fleet: FleetState) -> dict[str, Any]:
    """Which cell is which: sent only when GPUs come or go. Cells are sorted by node and GPU."""
    order = fleet.order()
    nodes = fleet.columns.node[order]
    starts = np.flatnonzero(np.diff(nodes, prepend=-1)) if len(nodes) else np.empty(0, np.int64)
    sizes = np.diff(starts, append=len(nodes))
    layout: dict[str, Any] = {
        "revision": fleet.revision,
        "cells": "gpus" if fleet.count <= CELLS_MAX else "nodes",
        "gpus": fleet.count,
        "nodes": [fleet.nodes[node] for node in nodes[starts]],
        "sizes": sizes.tolist(),
    }
    if layout["cells"] == "gpus":
        layout["gpu"] = fleet.columns.gpu[order].tolist()
        layout["uuid"] = fleet.columns.uuid[order].tolist()
    return layout


def fleet_now(fleet: FleetState, now: float) -> dict[str, Any]:
    """The heatmap at ``now`` (UTC seconds): for each metric the cells as base64 of little-endian uint16 codes."""
    order = fleet.order()
    stale = fleet.stale(now)[order]
    per_gpu = fleet.count <= CELLS_MAX
    starts = _starts(fleet, order)
    metrics = {}
    for at, metric in enumerate(HEAT_METRICS):
        values, valid = fleet.columns.values[at, order], fleet.columns.valid[at, order] & ~stale
        if per_gpu:
            metrics[metric.name] = quantised(values, fleet.columns.valid[at, order])
        else:
            metrics[metric.name] = {
                "worst": quantised(*_worst(values, valid, starts, metric)),
                "mean": quantised(*_mean(values, valid, starts)),
            }
        metrics[metric.name]["mean_all"] = _scalar_mean(values, valid)
    return {
        "time": now,
        "revision": fleet.revision,
        "gpus": fleet.count,
        "stale": int(stale.sum()),
        "reporting": fleet.count - int(stale.sum()),
        "simulated": int(fleet.columns.simulated[: fleet.count].sum()),
        "newest": float(fleet.columns.last_seen[: fleet.count].max()) if fleet.count else None,
        "stale_cells": _bits(stale if per_gpu else _all_of(stale, starts)),
        "metrics": metrics,
    }


def metric_choices(fleet: FleetState) -> list[dict[str, Any]]:
    """The metrics of the heatmap, with the span of their colours."""
    choices = [asdict(metric) for metric in HEAT_METRICS]
    if fleet.power_limit_watts is not None:
        next(choice for choice in choices if choice["name"] == "power_watts")["high"] = fleet.power_limit_watts
    return choices


def fleet_rows(fleet: FleetState, now: float, node: str | None, limit: int) -> list[dict[str, Any]]:
    """GPU by GPU, exact, for the API: up to ``limit`` of them, of one node or of all. Absent is ``None``."""
    order = fleet.order()
    if node is not None:
        order = order[[fleet.nodes[at] == node for at in fleet.columns.node[order]]]
    columns, stale = fleet.columns, fleet.stale(now)
    return [
        {
            "node": fleet.nodes[columns.node[slot]],
            "gpu": int(columns.gpu[slot]),
            "uuid": columns.uuid[slot],
            "simulated": bool(columns.simulated[slot]),
            "last_seen": float(columns.last_seen[slot]),
            "stale": bool(stale[slot]),
        }
        | {
            metric.name: float(columns.values[at, slot]) if columns.valid[at, slot] else None
            for at, metric in enumerate(HEAT_METRICS)
        }
        for slot in order[:limit]
    ]


def job_summary(job: Job, now: float) -> dict[str, Any]:
    """A line of the job list. Absent is ``None``."""
    newest = job.newest
    curve = newest.curve
    running = not newest.ended and now - newest.last_seen <= SILENT_SECONDS
    return {
        "job": job.name,
        "region": job.region,
        "attempt": newest.name,
        "attempts": job.attempts_seen,
        "state": "running" if running else "ended" if newest.ended else "silent",
        "step": int(curve.steps[curve.count - 1]) if curve.count else None,
        "loss": curve.last(0),
        "grad_norm": curve.last(1),
        "steps_per_second": curve.rate(now, RATE_SECONDS) if running else None,
        "tokens_per_second": newest.tokens_per_second(now) if running else None,
        "world_size": newest.world_size,
        "ranks_seen": newest.ranks_seen,
        "rows": newest.rows,
        "last_seen": newest.last_seen,
        "first_nonfinite": _mark(newest.marks[0]) if newest.marks else None,
    }


def job_detail(job: Job, attempt: Attempt, now: float, version: int) -> dict[str, Any]:
    """A job with the whole curve of one of its attempts; ``version`` is what the stream's next deltas begin at."""
    curve = attempt.curve
    return job_summary(job, now) | {
        "attempt_names": list(job.attempts),
        "shown_attempt": attempt.name,
        "metrics": dict(attempt.metrics),
        "nonfinite": [_mark(mark) for mark in attempt.marks],
        "nonfinite_dropped": attempt.marks_dropped,
        "curve": curve_points(curve, np.arange(curve.count)) | {"version": version, "thinned": curve.thinned},
    }


def curve_points(curve: Curve, at: Array) -> dict[str, Any]:
    """Some points of a curve by columns. Absent is ``None``; non-finite numbers are left to the JSON encoder."""
    columns = {
        name: [
            float(value) if ok else None for value, ok in zip(curve.values[row, at], curve.valid[row, at], strict=True)
        ]
        for row, name in enumerate(("loss", "grad_norm"))
    }
    return {"step": curve.steps[at].tolist(), **columns}


def curve_deltas(jobs: Iterable[Job], since: int, version: int, jobs_max: int) -> dict[str, Any]:
    """What of the newest attempts' curves has changed after ``since``, for up to ``jobs_max`` jobs.

    A reader whose own copy is older than ``since`` asks for the whole curve.
    """
    changed = [job for job in jobs if job.newest.curve.version > since]
    curves = [
        {"job": job.name, "attempt": job.newest.name, **curve_points(job.newest.curve, job.newest.curve.since(since))}
        for job in changed[:jobs_max]
    ]
    return {"since": since, "version": version, "curves": curves, "left_out": [job.name for job in changed[jobs_max:]]}


def quantised(values: Array, valid: Array) -> dict[str, Any]:
    """Numbers as uint16 codes: exact to one part in 65,000 between the smallest and the largest finite one."""
    finite = valid & np.isfinite(values)
    low = float(values[finite].min()) if finite.any() else 0.0
    high = float(values[finite].max()) if finite.any() else 0.0
    codes = np.full(values.shape, CODE_MISSING, "<u2")
    scale = CODE_TOP / (high - low) if high > low else 0.0
    codes[finite] = np.round((values[finite].astype(np.float64) - low) * scale)
    codes[valid & np.isnan(values)] = CODE_NAN
    codes[valid & np.isposinf(values)] = CODE_POSITIVE_INFINITY
    codes[valid & np.isneginf(values)] = CODE_NEGATIVE_INFINITY
    return {"from": low, "to": high, "codes": base64.b64encode(codes.tobytes()).decode()}


def _bits(flags: Array) -> str:
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()


def _starts(fleet: FleetState, order: Array) -> Array:
    return np.flatnonzero(np.diff(fleet.columns.node[order], prepend=-1)) if len(order) else np.empty(0, np.int64)


def _worst(values: Array, valid: Array, starts: Array, metric: HeatMetric) -> tuple[Array, Array]:
    """Each node's worst value; a NaN is worse than any number."""
    ufunc, fill = (np.maximum, -np.inf) if metric.worst_is_high else (np.minimum, np.inf)
    # maximum and minimum hand a NaN on, which is what is wanted here.
    return ufunc.reduceat(np.where(valid, values, fill), starts), np.logical_or.reduceat(valid, starts)


def _mean(values: Array, valid: Array, starts: Array) -> tuple[Array, Array]:
    sums = np.add.reduceat(np.where(valid, values, 0.0).astype(np.float64), starts)
    counts = np.add.reduceat(valid.astype(np.int64), starts)
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0), counts > 0


def _scalar_mean(values: Array, valid: Array) -> float | None:
    finite = valid & np.isfinite(values)
    return float(values[finite].mean(dtype=np.float64)) if finite.any() else None


def _all_of(stale: Array, starts: Array) -> Array:
    return np.asarray(np.logical_and.reduceat(stale, starts)) if len(starts) else stale


def _mark(mark: Any) -> dict[str, Any]:
    return {
        "step": mark.step,
        "rank": mark.rank,
        "what": list(mark.what),
        "parameter": mark.parameter,
        "time": mark.time,
    }
