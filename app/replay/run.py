"""A recorded run as frames of ``train/1`` and ticks, through detectors.

The files carry no time of day: event time starts at 0 and goes on by each row's ``step_time_s`` (else a second). Ticks
are made from it too, where rows are far enough apart that a silence could be found, so that a replay finds the same
silence every time. How many rows go into a frame does not change what is found.
"""

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from alerting.group import Scene, group
from alerting.incident import Tier
from alerting.route import Routing
from app.replay.readers import Run
from detectors.detector import Detector, ReaderHealth
from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame, batch_of
from telemetry_bus.frames import Run as ManifestRun
from telemetry_bus.schemas import FindingState, Scope

ATTEMPT = "replay"
ROWS_PER_FRAME = 256
"""Rows fed at once; measured: 1,100 rows a second one by one, 20,000 in frames of 64, 34,000 in one."""
DEFAULT_STEP_SECONDS = 1.0
"""Time between rows that do not say how long they took."""
STEP_SECONDS_MAX = 86_400.0
"""A longer step than a day is a mistake of the file."""
QUIET_SECONDS = 5.0
"""Gaps between rows that are shorter have no ticks: no detector takes so short a silence for one."""
GAP_TICKS_MAX = 512
"""Ticks of one gap: each second at first, then ever further apart, so that a gap of a day costs no more."""
_BOOT = uuid.UUID(int=0)
_COLUMNS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "lr",
    "loss_scale": "loss_scale",
    "nonfinite": "nonfinite",
    "skipped": "skipped",
    "step_time_s": "step_seconds",
}


@dataclass(frozen=True, slots=True)
class ReplayFinding:
    """A finding and the row (and its step) at which it came out: it depends on no later one."""

    finding: Finding
    row: int
    step: int

    def as_json(self) -> dict[str, Any]:
        """As the command prints it."""
        cause = self.finding.causes[0].cause if self.finding.causes else None
        return {
            "detector": self.finding.detector,
            "severity": self.finding.severity.value,
            "step": self.step,
            "row": self.row,
            "onset_step": self.finding.onset_step,
            "cause": cause,
            "message": f"{self.finding.title}. {self.finding.message}".strip(),
        }


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What came of one file. ``resolved`` are the ends of what is in ``findings``; ``pages`` those that would have
    paged."""

    file: str
    rows: int
    findings: tuple[ReplayFinding, ...]
    resolved: tuple[ReplayFinding, ...]
    pages: tuple[ReplayFinding, ...]
    rows_per_second: float
    skipped_rows: int
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The line of the command's JSON."""
        return {
            "file": self.file,
            "rows": self.rows,
            "findings": [item.as_json() for item in self.findings],
            "pages": [item.step for item in self.pages],
            "page_rows": [item.row for item in self.pages],
            "rows_per_second": round(self.rows_per_second),
            "skipped_rows": self.skipped_rows,
            "problems": list(self.problems),
        }


def event_micros(run: Run) -> list[int]:
    """The event time of every row in microseconds; it always grows."""
    taken: Sequence[Any] = run.columns.get("step_time_s") or [None] * len(run.rows)
    micros, now = [], 0
    for seconds in taken:
        usable = seconds is not None and math.isfinite(seconds) and seconds >= 0
        now += max(1, round(min(seconds if usable else DEFAULT_STEP_SECONDS, STEP_SECONDS_MAX) * 1e6))
        micros.append(now)
    return micros


def run_batch(run: Run, micros: list[int], job: str) -> pa.RecordBatch:
    """All rows of ``run`` as one batch of ``train/1``."""
    rows = len(micros)
    columns: dict[str, Any] = {
        "time": pa.array(micros, type=pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "job": [job] * rows,
        "attempt": [ATTEMPT] * rows,
        "rank": [0] * rows,
        "step": run.columns["step"],
        "scope": [Scope.GLOBAL.value] * rows,
    }
    columns.update({_COLUMNS[name]: values for name, values in run.columns.items() if name in _COLUMNS})
    return batch_of("train/1", columns)


def gap_ticks(before: float, after: float) -> list[float]:
    """The ticks of a silence between two rows (UTC seconds): each second first, then each 2 % later than the last."""
    ticks: list[float] = []
    wait = 1.0
    while wait < after - before and len(ticks) < GAP_TICKS_MAX:
        ticks.append(before + wait)
        wait = max(wait + 1.0, wait * 1.02)
    return ticks


def replay_run(run: Run, detectors: Sequence[Detector], rows_per_frame: int = ROWS_PER_FRAME) -> ReplayResult:
    """Feed ``run`` to ``detectors`` (which must be new), so many rows to a frame."""
    started = perf_counter()
    micros = event_micros(run)
    batch = run_batch(run, micros, job_name(run.path))
    found: list[tuple[Finding, int]] = []
    for begin, end in pieces(micros, rows_per_frame):
        found += feed(detectors, batch, micros, begin, end)
    return _result(run, found, len(micros) / max(perf_counter() - started, 1e-9))


def feed(
    detectors: Sequence[Detector], batch: pa.RecordBatch, micros: list[int], begin: int, end: int
) -> list[tuple[Finding, int]]:
    """Give the rows from ``begin`` to ``end`` as one frame, after the ticks of the gap before them; what was said, each
    with the row at which it came out."""
    found: list[tuple[Finding, int]] = []
    if begin and micros[begin] - micros[begin - 1] > QUIET_SECONDS * 1e6:
        for now in gap_ticks(micros[begin - 1] / 1e6, micros[begin] / 1e6):
            found.extend((item, begin) for detector in detectors for item in detector.tick(now, ReaderHealth()))
    source = ManifestRun("replay", _BOOT, begin, end - begin, micros[end - 1] / 1e6)
    frame = Frame("train/1", batch.slice(begin, end - begin), (source,))
    said = [item for detector in detectors for item in detector.observe(frame)]
    rows = np.searchsorted(micros[begin:end], [round(item.time * 1e6) for item in said]) if said else ()
    found.extend(
        sorted(((item, begin + int(at)) for item, at in zip(said, rows, strict=True)), key=lambda pair: pair[1])
    )
    return found


def pieces(micros: list[int], rows_per_frame: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into frames, also before every gap that has ticks."""
    gaps = (np.flatnonzero(np.diff(micros) > QUIET_SECONDS * 1e6) + 1).tolist()
    begin = 0
    for stop in [*gaps, len(micros)]:
        while begin < stop:
            end = min(begin + rows_per_frame, stop)
            yield begin, end
            begin = end


def job_name(path: Path) -> str:
    """The job's name in the findings."""
    return path.stem or path.name


def _result(run: Run, found: Sequence[tuple[Finding, int]], rows_per_second: float) -> ReplayResult:
    steps = run.columns["step"]
    items = [ReplayFinding(item, run.rows[at], int(steps[at] or 0)) for item, at in found]
    firing = tuple(item for item in items if item.finding.state is FindingState.FIRING)
    over = tuple(item for item in items if item.finding.state is FindingState.RESOLVED)
    return ReplayResult(
        str(run.path),
        len(run.rows),
        firing,
        over,
        pages_of(items),
        rows_per_second,
        run.skipped_rows,
        tuple(run.problems),
    )


def pages_of(items: Sequence[ReplayFinding]) -> tuple[ReplayFinding, ...]:
    """Those with which somebody would have been paged: alerting's own grouping and routing decide."""
    pages: list[ReplayFinding] = []
    paged: set[str] = set()
    scene, routing = Scene(), Routing()
    for item in items:
        change = group(scene, item.finding, routing.tier)
        scene = scene.after(change)
        incident = change.incident
        if incident is not None and incident.tier is Tier.PAGE and incident.id not in paged:
            paged.add(incident.id)
            pages.append(item)
    return tuple(pages)
