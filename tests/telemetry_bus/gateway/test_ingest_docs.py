"""docs/ingest.md says what is so: commands run, configurations are read, tables and limits are those of the code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from telemetry_bus import Topic
from telemetry_bus.gateway import bodies, latest_rows, numbering, otlp, remote_write, series_cache, train_json
from telemetry_bus.gateway.ingest import IngestCounters
from telemetry_bus.gateway.metric_mapping import DCGM_NAMES
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.http_server import bind, running
from tests.telemetry_bus.gateway.ingest_scene import GATEWAY_TOKEN, JOB_TOKENS, Shelf, make_app

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "ingest.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The blocks of a language, as they stand."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


async def run(command: str, port: int) -> str:
    """What a command prints; it must succeed."""
    told = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "GATEWAY": f"http://127.0.0.1:{port}",
        "GATEWAY_TOKEN": GATEWAY_TOKEN,
        "JOB_TOKEN": JOB_TOKENS["gpt"],
    }
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, env=told, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
    return out.decode()


async def test_the_commands_run_as_they_stand() -> None:
    """Every curl of the page is taken, and its rows are on the bus."""
    shelf = Shelf()
    app, ingest = make_app(shelf, clock=SystemClock())
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with running(app, listener):
        answers = [await run(command, port) for command in blocks("sh")]
    assert answers == ['{"accepted":1,"durable":true}', '{"accepted":2,"durable":true}', "{}"]
    assert [topic for topic, _, _ in shelf.frames] == [Topic.TRAIN, Topic.TRAIN, Topic.METRICS, Topic.GPU]
    assert (ingest.counters.train_rows, ingest.counters.samples) == (5, 1)


@pytest.mark.timeout(60)
async def test_prometheus_reads_its_block(service_binary: Callable[[str], Path], tmp_path: Path) -> None:
    """promtool takes the configuration of the page."""
    (block,) = (found for found in blocks("yaml") if found.startswith("remote_write:"))
    promtool = service_binary("prometheus").with_name("promtool")
    file = tmp_path / "prometheus.yml"
    file.write_text(block.replace("/etc/prometheus/nantucket-gateway-token", str(tmp_path / "token")))
    (tmp_path / "token").write_text("t")
    process = await asyncio.create_subprocess_exec(
        promtool, "check", "config", file, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


def test_the_collectors_block_is_whole() -> None:
    """What the collector's pipeline names is configured, and it exports to the entry."""
    (block,) = (found for found in blocks("yaml") if found.startswith("receivers:"))
    found = yaml.safe_load(block)
    pipeline = found["service"]["pipelines"]["metrics"]
    for kind, names in pipeline.items():
        assert set(names) <= found[kind].keys()
    (exporter,) = pipeline["exporters"]
    assert found["exporters"][exporter]["metrics_endpoint"].endswith("/v1/metrics")


def test_every_name_is_in_the_table_beside_its_column() -> None:
    """A name that is read is on the page, in the row of its column."""
    rows = {line.split("`")[1]: line for line in TEXT.splitlines() if line.startswith("| `") and "DCGM_FI" in line}
    for name, (column, _) in DCGM_NAMES.items():
        assert f"`{name}`" in rows[column]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(f"{train_json.BODY_BYTES_MAX >> 20} MiB (unpacked", id="train-bytes"),
        pytest.param(f"over {train_json.NAMELESS_BYTES_MAX >> 10} KiB", id="nameless-bytes"),
        pytest.param(f"{train_json.ROWS_MAX:,} rows", id="rows"),
        pytest.param(f"{train_json.ROW_METRICS_MAX} metrics a row", id="metrics-a-row"),
        pytest.param(f"and {train_json.METRICS_MAX:,} a request", id="metrics"),
        pytest.param(f"| {remote_write.DECODED_BYTES_MAX >> 20} MiB, unpacked", id="metrics-bytes"),
        pytest.param(f"samples of a request | {remote_write.SAMPLES_MAX:,} |", id="samples"),
        pytest.param(f"| {bodies.HELD_BYTES_MAX >> 20} MiB, then 429 |", id="held"),
        pytest.param(f"| {bodies.BODY_SECONDS:g} s after its first", id="seconds"),
        pytest.param(f"at once | {bodies.READERS_MAX};", id="readers"),
        pytest.param(f"remembered | {series_cache.SERIES_MAX:,} ", id="series"),
        pytest.param(f"newest row is remembered | {latest_rows.GPUS_MAX:,} ", id="gpus"),
        pytest.param(f"numbered | {numbering.SOURCES_MAX:,} |", id="sources"),
    ],
)
def test_limits_are_those_of_the_code(said: str) -> None:
    """A bound that changes changes on the page."""
    assert said in TEXT
    assert (otlp.DECODED_BYTES_MAX, otlp.POINTS_MAX) == (remote_write.DECODED_BYTES_MAX, remote_write.SAMPLES_MAX)


def test_every_reason_starts_at_zero() -> None:
    """A reason that has not happened yet is a zero, so that a graph of it begins there."""
    assert set(IngestCounters().unmapped.values()) == {0}
