"""Rows of training as the tests write them."""

from collections.abc import Sequence
from typing import Any

from detectors import Detector, ReaderHealth
from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.schemas import SCHEMAS

NAN, INF = float("nan"), float("inf")
START = 1_700_000_000.0


def row(step: int, rank: int = 0, second: float | None = None, **values: Any) -> dict[str, Any]:
    """A row of job ``leviathan-7b``, a second a step."""
    time = START + (step if second is None else second)
    return {"time": time, "job": "leviathan-7b", "attempt": "1", "rank": rank, "step": step, **values}


def frame(rows: Sequence[dict[str, Any]], schema: str = "train/1") -> Frame:
    """One frame of ``rows``; a key that a row does not have is absent there."""
    names = [name for name in SCHEMAS[schema].names if any(name in item for item in rows)]
    return FrameMaker("test").make(
        schema, {name: [item.get(name) for item in rows] for name in names}, rows[-1]["time"]
    )


def fed(detector: Detector, rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """What it says of ``rows`` in one frame."""
    return list(detector.observe(frame(rows)))


def ended(job: str = "leviathan-7b", attempt: str = "1", second: float = 0.0) -> Frame:
    """The event of a job's end."""
    event = {"time": START + second, "kind": "job_end", "job": job, "attempt": attempt, "simulated": False}
    return frame([event], "event/1")


def ticks(detector: Detector, begin: float, end: float, health: ReaderHealth | None = None) -> list[Finding]:
    """What it says at each second from ``begin`` to ``end`` after the start."""
    said: list[Finding] = []
    for second in range(int(begin), int(end) + 1):
        said.extend(detector.tick(START + second, health or ReaderHealth()))
    return said
