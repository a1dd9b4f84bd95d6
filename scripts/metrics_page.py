"""The page of docs/ about the metrics, made from the closed sets and from what each source asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from collectors import dcgm_fields
from collectors.cost_class import CostClass
from collectors.network.counters import sources as network_sources
from collectors.nvml import plan as nvml
from collectors.simulated import SimulatedFleet
from scripts.configuration_page import NOTE
from telemetry_bus.metric_names import GPU_METRICS, LINK_METRICS, Metric

INTRODUCTION = """# Metrics

Every measured column of the frames, and where it comes from. A column is a metric's name in a frame, in Arrow, in the
HTTP API and in `collect --once --json` alike. Null means not read or not there; 0.0 is a value; a NaN is a NaN that the
device gave. The names are a closed set ([frames](frames.md)); [collectors](collectors.md) says how they are read.

**Read** is the cost class: each second, every 10 s or every 30 s, at the same instants on all nodes. In the rows in
between the value is null.
"""
READ = {CostClass.SECOND: "each second", CostClass.SLOW: "every 10 s", CostClass.RARE: "every 30 s"}
GPU_ORIGINS: Mapping[str, Mapping[str, str]] = {"NVML": nvml.sources(), "dcgm-exporter": dcgm_fields.sources()}
"""By the heading of a column, where each metric of ``gpu/1`` comes from. A metric that is in none is a fault."""
LINK_ORIGINS: Mapping[str, Mapping[str, str]] = {
    "NVML (NVLink)": nvml.link_sources(),
    "dcgm-exporter (NVLink)": dcgm_fields.link_sources(),
    "sysfs (InfiniBand, RoCE)": network_sources()["infiniband"],
    "sysfs (Ethernet)": network_sources()["ethernet"],
}


def metrics_page() -> str:
    """Return the page."""
    simulated = dict.fromkeys(SimulatedFleet(1).build().columns(0.0), "yes")
    gpu = table(GPU_METRICS, nvml.COSTS, {**GPU_ORIGINS, "Simulated": simulated})
    link = table(LINK_METRICS, {}, LINK_ORIGINS)
    parts = ["## GPUs", "One row of `gpu/1` is a GPU or a MIG instance at one instant.", "\n".join(gpu)]
    parts += ["## Links", "One row of `link/1` is a port of a network card, or an NVLink.", "\n".join(link)]
    return NOTE + INTRODUCTION + "\n" + "\n\n".join(parts) + "\n"


def table(
    metrics: Sequence[Metric], costs: Mapping[str, CostClass], origins: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """The lines of a table, a line a metric; without ``costs`` it does not say how often one is read."""
    headings = ["metric", "unit", "kind", "column", *(["read"] if costs else []), *origins, "meaning"]
    yield _line(headings)
    yield _line(["---"] * len(headings))
    for metric in metrics:
        read = [READ[costs[metric.name]] if metric.name in costs else ""] if costs else []
        found = [_cell(origin.get(metric.name, "")) for origin in origins.values()]
        column = {"float": "float32", "double": "float64"}.get(metric.arrow, metric.arrow)
        yield _line([f"`{metric.name}`", metric.unit, metric.kind.value, column, *read, *found, _cell(metric.meaning)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
