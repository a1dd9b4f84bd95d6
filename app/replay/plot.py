"""A picture of a run: its loss and gradient norm, with the findings on them."""

import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.replay.readers import Run
from app.replay.run import ReplayResult, job_name
from telemetry_bus.schemas import Severity

COLOURS = {Severity.CRITICAL: "#c62828", Severity.WARNING: "#ef6c00", Severity.INFO: "#546e7a"}
PICTURE_INCHES = (11.0, 6.0)
LINES_MAX = 200
"""Findings that are drawn; a picture with more of them shows nothing."""

DRAWN_MAX = 1e100
"""matplotlib multiplies the span of an axis with itself; the largest float is 1.8e308."""


def plot_run(run: Run, result: ReplayResult, path: Path) -> None:
    """Write the picture to ``path`` (its folder is made if need be). ``OSError`` if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=PICTURE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, name, label in ((axes[0], "loss", "loss"), (axes[1], "grad_norm", "gradient norm")):
        _curve(axis, run, name, label)
        _findings(axis, result)
    axes[0].set_title(f"{job_name(run.path)}: {len(result.findings)} findings, {len(result.pages)} pages")
    axes[1].set_xlabel("row (steps repeat after a resume)")
    figure.savefig(path, dpi=110)


def _curve(axis: Any, run: Run, name: str, label: str) -> None:
    """Absent values leave a gap; non-finite ones and those beyond :data:`DRAWN_MAX` are crosses at the upper edge."""
    values = run.columns.get(name) or [None] * len(run.rows)
    finite = [value if value is not None and _drawn(value) else math.nan for value in values]
    axis.plot(run.rows, finite, linewidth=0.7, color="#1565c0")
    broken = [row for row, value in zip(run.rows, values, strict=True) if value is not None and not _drawn(value)]
    axis.plot(broken, [0.97] * len(broken), "x", color="#c62828", markersize=4, transform=axis.get_xaxis_transform())
    positive = [value for value in finite if value > 0]
    if (
        positive
        and len(positive) == sum(not math.isnan(value) for value in finite)
        and max(positive) > 20 * min(positive)
    ):
        axis.set_yscale("log")
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)


def _drawn(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= DRAWN_MAX


def _findings(axis: Any, result: ReplayResult) -> None:
    pages = {page.row for page in result.pages}
    for item in result.findings[:LINES_MAX]:
        style = "-" if item.row in pages else ":"
        axis.axvline(item.row, color=COLOURS[item.finding.severity], linestyle=style, linewidth=1.0, alpha=0.8)
