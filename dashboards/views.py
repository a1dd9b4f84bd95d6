"""What the page and the API show: plain objects made of the state, each computed once for all readers."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dashboards.curves import Curve
from dashboards.fleet import HEAT_METRICS, Array, FleetState
from dashboards.gpu_users import GpuUsersState
from dashboards.jobs import RATE_SECONDS, SILENT_SECONDS, Attempt, Job

CUT_OFF_SECONDS = 15.0
"""As long as the detector silent_region waits: page and incident say the same."""


def fleet_now(fleet: FleetState, now: float) -> dict[str, Any]:
    """The fleet's counts at ``now`` (UTC seconds)."""
    stale = int(fleet.stale(now).sum())
    return {
        "time": now,
        "gpus": fleet.count,
        "stale": stale,
        "reporting": fleet.count - stale,
        "simulated": int(fleet.columns.simulated[: fleet.count].sum()),
        "newest": float(fleet.columns.last_seen[: fleet.count].max()) if fleet.count else None,
    }


def metric_choices(fleet: FleetState) -> list[dict[str, Any]]:
    """The metrics of the heatmap, with the span of their colours."""
    choices = [asdict(metric) for metric in HEAT_METRICS]
    if fleet.power_limit_watts is not None:
        next(choice for choice in choices if choice["name"] == "power_watts")["high"] = fleet.power_limit_watts
    return choices


def fleet_rows(
    fleet: FleetState, users: GpuUsersState, now: float, node: str | None, limit: int
) -> list[dict[str, Any]]:
    """GPU by GPU, exact, for the API: up to ``limit`` of them, of one node or of all. Absent is ``None``."""
    order = fleet.order()
    if node is not None:
        order = order[[fleet.nodes[at] == node for at in fleet.columns.node[order]]]
    columns, stale = fleet.columns, fleet.stale(now)
    return [
        {
            "node": fleet.nodes[columns.node[slot]],
            "gpu": int(columns.gpu[slot]),
            "uuid": uuid,
            "simulated": bool(columns.simulated[slot]),
            "last_seen": float(columns.last_seen[slot]),
            "stale": bool(stale[slot]),
        }
        | {
            metric.name: float(columns.values[at, slot]) if columns.valid[at, slot] else None
            for at, metric in enumerate(HEAT_METRICS)
        }
        | users.of_node(fleet.nodes[columns.node[slot]]).of_gpu(int(columns.gpu[slot]), uuid)
        for slot, uuid in zip(order[:limit].tolist(), fleet.uuids(order[:limit]), strict=True)
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


def region_lines(fleet: FleetState, last_frames: Mapping[str, float], now: float) -> list[dict[str, Any]]:
    """The regions by name: their GPUs, their newest frame (UTC seconds), and since when they are cut off, if they are.

    A region is cut off when none of its frames has come for :data:`CUT_OFF_SECONDS`.
    """
    gpus, reporting = fleet.gpus_by_region(now)
    return [
        {
            "region": name,
            "gpus": gpus.get(name, 0),
            "reporting": reporting.get(name, 0),
            "last_frame": last,
            "cut_off_since": last if now - last > CUT_OFF_SECONDS else None,
        }
        for name, last in sorted(last_frames.items())
    ]


def _mark(mark: Any) -> dict[str, Any]:
    return {
        "step": mark.step,
        "rank": mark.rank,
        "what": list(mark.what),
        "parameter": mark.parameter,
        "time": mark.time,
    }
