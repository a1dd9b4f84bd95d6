"""What other people's names and labels mean: a node, a column, or nothing that is known here."""

from __future__ import annotations

import numpy as np
import pytest

from telemetry_bus.gateway.latest_rows import LatestRows
from telemetry_bus.gateway.metric_mapping import COLUMNS, DCGM_NAMES, Gpu, GpuSeries, Unmapped, series_of
from telemetry_bus.gateway.series_cache import KEY_BYTES_MAX, SERIES_MAX, SeriesCache


def test_every_name_of_the_table_is_a_column() -> None:
    """The table says nothing that the schema has no room for."""
    assert {column for column, _ in DCGM_NAMES.values()} <= set(COLUMNS)


def test_meanings_that_are_remembered_are_bounded() -> None:
    """A long key is not kept, and at the bound everything begins anew."""
    cache = SeriesCache()
    cache.learn("long", KEY_BYTES_MAX + 1, "up", {})
    assert cache.get("long") is None
    for number in range(SERIES_MAX + 1):
        cache.learn(number, 8, "up", {})
    assert cache.get(0) is None
    assert cache.get(SERIES_MAX) is Unmapped.UNKNOWN_NAME


def test_rows_that_are_remembered_are_bounded() -> None:
    """At the bound all rows are forgotten: the next one is what was sent, and nothing of another GPU."""
    latest = LatestRows(gpus_max=2)

    def joined(number: int, column: int) -> list[int]:
        values, valid = np.zeros((1, len(COLUMNS))), np.zeros((1, len(COLUMNS)), dtype=bool)
        valid[0, column] = True
        latest.join([Gpu("a", number, None, None)], np.array([0]), np.array([5.0]), values, valid)
        return [int(at) for at in np.flatnonzero(valid[0])]

    assert [joined(0, 1), joined(1, 2), joined(0, 3)] == [[1], [2], [1, 3]]
    assert [joined(2, 4), joined(0, 5), joined(2, 6)] == [[4], [5], [4, 6]]


@pytest.mark.parametrize(
    ("labels", "node"),
    [
        pytest.param({"Hostname": "a", "instance": "b:9400"}, "a", id="old-name"),
        pytest.param({"hostname": "a", "instance": "b:9400"}, "a", id="new-name"),
        pytest.param({"node": "a", "Hostname": "pod-x"}, "a", id="relabelled"),
        pytest.param({"k8s_node_name": "a", "host_name": "b"}, "a", id="kubernetes-by-otlp"),
        pytest.param({"host_name": "a"}, "a", id="host-by-otlp"),
        pytest.param({"instance": "a:9400"}, "a", id="scrape-target"),
        pytest.param({"instance": "[::1]:9400"}, "[::1]", id="scrape-target-ipv6"),
        pytest.param({"instance": "a"}, "a", id="no-port"),
    ],
)
def test_the_node_is_the_first_label_that_names_one(labels: dict[str, str], node: str) -> None:
    """Old and new label names of the exporter, a relabelling, OTLP's attributes, and the target's host last."""
    series = series_of("DCGM_FI_DEV_GPU_TEMP", {"gpu": "0", **labels})
    assert isinstance(series, GpuSeries)
    assert series.gpu.node == node


def test_a_name_whose_unit_cannot_be_told_is_left_out() -> None:
    """DCGM gave one name to a percentage in one release and to a ratio in the next: a guess would be a false number."""
    assert series_of("DCGM_FI_DEV_GPU_UTIL_RATIO", {"gpu": "0", "node": "a"}) is Unmapped.UNKNOWN_NAME
