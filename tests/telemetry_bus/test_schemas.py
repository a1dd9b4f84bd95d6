"""The closed sets: schemas, topics and metric names. They grow at the end and change nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from telemetry_bus import SCHEMAS, TELEMETRY, TOPIC_SCHEMAS, Topic
from telemetry_bus.metric_names import GPU_METRICS, MetricKind

GOLDEN = Path(__file__).with_name("schemas.golden.json")
UNITS = (
    "_percent",
    "_mib",
    "_celsius",
    "_watts",
    "_joules",
    "_seconds",
    "_mhz",
    "_ratio",
    "_bytes_per_second",
    "_count",
    "_banks",
    "_links",
)
WITHOUT_UNIT = {
    "performance_state": "a rank, 0 to 15",
    "clocks_event_reasons": "bits",
    "pcie_link_generation": "a rank, 1 to 6",
    "pcie_link_width": "lanes",
    "pcie_link_generation_max": "a rank, 1 to 6",
    "pcie_link_width_max": "lanes",
    "recovery_action": "a code, 0 to 5",
    "row_remap_pending": "0 or 1",
    "row_remap_failed": "0 or 1",
    "fabric_state": "a code, 0 to 3",
    "fabric_status": "a code of NVML",
    "fabric_health": "a code, 0 to 3",
    "fabric_health_mask": "bits",
    "sram_ecc_threshold_exceeded": "0 or 1",
    "retired_page_pending": "0 or 1",
    "memory_unrepairable": "0 or 1",
}
"""Metrics that have no unit, and what their number is instead."""


def columns_of(schema_id: str) -> list[list[object]]:
    """A schema as the golden file has it: name, type and whether it may be absent."""
    return [[field.name, str(field.type), field.nullable] for field in SCHEMAS[schema_id]]


@pytest.mark.parametrize("schema_id", json.loads(GOLDEN.read_text()))
def test_a_schema_only_grows_at_its_end(schema_id: str) -> None:
    """Frames in logs and nodes not yet upgraded are read by position: no column is renamed, retyped, moved or dropped.

    Columns added at the end are allowed; write them to schemas.golden.json when they are released.
    """
    frozen = json.loads(GOLDEN.read_text())[schema_id]
    assert columns_of(schema_id)[: len(frozen)] == frozen


def test_every_schema_and_column_is_in_the_golden_file() -> None:
    """What is not written down is not protected."""
    golden = json.loads(GOLDEN.read_text())
    missing = [schema_id for schema_id in SCHEMAS if golden.get(schema_id) != columns_of(schema_id)]
    assert missing == [], f"add the new columns of {missing} to {GOLDEN.name}"


def test_every_topic_carries_schemas_that_are_known() -> None:
    """And every schema has a topic."""
    assert set(TOPIC_SCHEMAS) == set(Topic)
    assert frozenset().union(*TOPIC_SCHEMAS.values()) == set(SCHEMAS)
    assert all(TOPIC_SCHEMAS.values())


def test_the_backlog_carries_what_collectors_write() -> None:
    """Everything that an outage can hold back, and nothing else."""
    assert TOPIC_SCHEMAS[Topic.BACKLOG] == frozenset().union(*(TOPIC_SCHEMAS[topic] for topic in TELEMETRY))


@pytest.mark.parametrize("schema_id", SCHEMAS)
def test_every_row_has_a_time_and_it_comes_first(schema_id: str) -> None:
    """UTC, microseconds, never absent."""
    first = SCHEMAS[schema_id].field(0)
    assert (first.name, first.type, first.nullable) == ("time", pa.timestamp("us", tz="UTC"), False)


@pytest.mark.parametrize("metric", GPU_METRICS, ids=lambda metric: metric.name)
def test_a_metric_name_ends_in_its_unit(metric: object) -> None:
    """Or the number has none, and this file says what it is."""
    name = metric.name  # type: ignore[attr-defined]
    assert name.endswith(UNITS) != (name in WITHOUT_UNIT)


@pytest.mark.parametrize("metric", GPU_METRICS, ids=lambda metric: metric.name)
def test_a_counter_is_never_a_float32(metric: object) -> None:
    """After months a float32 counter moves in steps; a gauge needs no more than float32."""
    kind, arrow = metric.kind, metric.arrow  # type: ignore[attr-defined]
    assert (arrow == "float") == (kind is MetricKind.GAUGE)
    assert arrow in ("float", "double", "int64")


def test_metrics_are_the_last_columns_of_gpu_rows_and_may_each_be_absent() -> None:
    """A device that does not have one says null, never zero."""
    names = [metric.name for metric in GPU_METRICS]
    assert SCHEMAS["gpu/1"].names[-len(names) :] == names
    assert len(set(names)) == len(names)
    assert all(SCHEMAS["gpu/1"].field(name).nullable for name in names)
