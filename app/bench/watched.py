"""Running roles as a benchmark watches them: their CPU time, their memory, and their own figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from app.bench.machine import cpu_seconds, peak_rss_mib
from app.processes import Talking

Figures = Mapping[tuple[str, str], float]
"""By sample name and its labels' values, joined by commas."""


@dataclass(frozen=True, slots=True)
class Role:
    """A process, and where it tells its figures."""

    name: str
    process: Talking
    metrics: str

    def cpu(self) -> float:
        """CPU seconds so far, from the operating system."""
        return cpu_seconds(self.process.process.pid)

    def peak_mib(self) -> float:
        """The most memory it has had resident."""
        return peak_rss_mib(self.process.process.pid)

    async def figures(self) -> Figures:
        """What ``/metrics`` says now."""
        async with httpx.AsyncClient(timeout=30.0) as client:
            text = (await client.get(self.metrics)).raise_for_status().text
        families: Any = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def quantiles(before: Figures, after: Figures, histogram: str, wanted: Sequence[float]) -> list[float | None]:
    """Quantiles of what a histogram has counted between two looks, on a straight line within a bucket.

    ``None`` where nothing was counted; what lies beyond the last bound is that bound.
    """
    name = f"{histogram}_bucket"
    bounds = sorted((float(label), label) for (sample, label) in after if sample == name)
    counts = [after[name, label] - before.get((name, label), 0.0) for _, label in bounds]
    return [_quantile([bound for bound, _ in bounds], counts, share) for share in wanted]


def _quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    if not counts or not counts[-1]:
        return None
    place, low, seen = share * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= place:
            return low if bound == float("inf") else low + (bound - low) * (place - seen) / (count - seen)
        low, seen = bound, count
    return low


def grown(before: Figures, after: Figures, name: str, label: str = "") -> float:
    """By how much a counter has grown."""
    return after.get((name, label), 0.0) - before.get((name, label), 0.0)


def words(result: Mapping[str, Any]) -> str:
    """Figures for people: one a line, nested ones behind their name."""
    lines = []
    for name, value in result.items():
        said = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else value
        lines.append(f"  {name:28s} {said}")
    return "\n".join(lines)
