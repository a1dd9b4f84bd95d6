"""The page about metrics is made from the code, and no metric stands in it without saying where it comes from."""

import re

import pytest

from collectors.nvml.sampling import COSTS, NAMES, link_sources, sources
from scripts.metrics_page import GPU_ORIGINS, LINK_ORIGINS, READ, metrics_page, table
from telemetry_bus.metric_names import GPU_METRIC_NAMES, GPU_METRICS, LINK_METRIC_NAMES, LINK_METRICS, UNITS, Metric


def rows(section: str) -> dict[str, list[str]]:
    """The rows of a section's table: the cells behind the name in the first."""
    text = metrics_page().split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines)}


@pytest.mark.parametrize(("section", "names"), [("GPUs", GPU_METRIC_NAMES), ("Links", LINK_METRIC_NAMES)])
def test_the_page_lists_exactly_the_closed_set_in_its_order(section: str, names: tuple[str, ...]) -> None:
    """A metric that is added is documented by being added."""
    assert tuple(rows(section)) == names


@pytest.mark.parametrize("metric", [*GPU_METRICS, *LINK_METRICS], ids=lambda metric: metric.name)
def test_every_metric_says_where_it_comes_from(metric: Metric) -> None:
    """A column that nothing ever fills is no column."""
    origins = GPU_ORIGINS if metric in GPU_METRICS else LINK_ORIGINS
    assert any(origin.get(metric.name) for origin in origins.values())


@pytest.mark.parametrize("metric", [*GPU_METRICS, *LINK_METRICS], ids=lambda metric: metric.name)
def test_every_metric_has_a_meaning_and_a_unit_that_its_name_ends_in(metric: Metric) -> None:
    """Who sees 42 knows 42 of what; a code says in its meaning what its numbers are, or names who defines them."""
    assert metric.meaning.endswith(".")
    if metric.unit == "code":
        assert re.search(r"\d |code of NVML", metric.meaning), metric.name
    else:
        assert metric.unit in {*UNITS.values(), "bits", "0 or 1"}


def test_what_nvml_gives_has_a_cost_class_and_a_call_and_nothing_else_has() -> None:
    """The table of what is read is the table of what is documented."""
    assert set(COSTS) == set(NAMES) == set(sources()) <= set(GPU_METRIC_NAMES)
    assert set(link_sources()) <= set(LINK_METRIC_NAMES)
    read = {name: cells[3] for name, cells in rows("GPUs").items()}
    assert read == {name: READ[COSTS[name]] if name in COSTS else "" for name in GPU_METRIC_NAMES}


def test_a_metric_of_no_source_would_be_seen_and_a_bar_does_not_break_the_table() -> None:
    """The check above can fail."""
    odd = Metric("odd_watts", GPU_METRICS[0].kind, "float", "Either | or.")
    assert list(table([odd], {}, {"NVML": {}}))[2] == "| `odd_watts` | W | gauge | float32 |  | Either \\| or. |"
