"""The senders themselves: a real Prometheus and a real OpenTelemetry SDK, over real connections, onto a real bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource
from starlette.responses import PlainTextResponse

from telemetry_bus import Earliest, Intake, Topic, open_bus
from telemetry_bus.gateway.ingest import Ingest, IngestOptions, check_of, encoded
from telemetry_bus.gateway.ingest_routes import ingest_router
from telemetry_bus.gateway.metric_mapping import Unmapped
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.http_server import bind, running
from telemetry_bus.runtime.secret import Secret
from tests.telemetry_bus.gateway.ingest_scene import GATEWAY_TOKEN, JOB_TOKENS

GUARD_SECONDS = 45.0
"""A guard against a test that hangs; no test waits for it to pass."""


def exposition(scrape: int, gpus: tuple[int, ...]) -> str:
    """What a dcgm-exporter would print at this scrape for these GPUs, a NaN included."""
    lines = []
    told: list[tuple[str, Callable[[int], object]]] = [
        ("DCGM_FI_DEV_GPU_TEMP", lambda gpu: 40 + gpu),
        ("DCGM_FI_DEV_GPU_UTIL", lambda _: 0),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", lambda _: 5_000_000_000 + 1_000 * scrape),
        ("DCGM_FI_PROF_DRAM_ACTIVE", lambda _: "NaN"),
    ]
    for name, value in told:
        lines.append(f"# TYPE {name} gauge")
        lines += [
            f'{name}{{gpu="{gpu}",UUID="GPU-{gpu}",device="nvidia{gpu}",modelName="A100",Hostname="node-1",'
            f'DCGM_FI_DRIVER_VERSION="550.1",container="",namespace="",pod=""}} {value(gpu)}'
            for gpu in gpus
        ]
    return "\n".join([*lines, "go_goroutines 12", ""])


class Site:
    """The two entries on a port, a bus behind them, and an exporter to be scraped beside them."""

    def __init__(self, app: FastAPI, bus: Any, ingest: Ingest) -> None:
        self.app, self.bus, self.ingest = app, bus, ingest
        self.port = 0
        self.scrapes = 0
        self.gpus: tuple[int, ...] = (0, 1)
        app.add_api_route("/exporter", self._exporter, methods=["GET"])

    async def _exporter(self) -> PlainTextResponse:
        self.scrapes += 1
        return PlainTextResponse(exposition(self.scrapes, self.gpus))

    async def rows(self, topic: Topic, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The rows of a topic, read from the bus until there are enough."""
        found: list[dict[str, Any]] = []
        intake = Intake()
        async with asyncio.timeout(GUARD_SECONDS), self.bus.subscribe([topic], Earliest()) as records:
            async for batch in records:
                for record in batch:
                    taken = intake.take(record)
                    assert taken.refusals == ()
                    found += [] if taken.frame is None else taken.frame.batch.to_pylist()
                if enough(found):
                    break
        assert (intake.ledger.outstanding, intake.ledger.duplicate_total) == (0, 0)
        return found


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """A site, up and on a free port."""
    clock = SystemClock()
    async with open_bus(f"file://{folder}/bus", clock) as bus:
        options = IngestOptions(
            accept=encoded(bus.publish),
            clock=clock,
            check_job=lambda job, token: JOB_TOKENS.get(job) == token,
            check_gateway=check_of(Secret(GATEWAY_TOKEN)),
        )
        ingest = Ingest(options)
        app = FastAPI()
        app.include_router(ingest_router(ingest))
        made = Site(app, bus, ingest)
        listener = bind("127.0.0.1", 0)
        made.port = listener.getsockname()[1]
        async with running(app, listener):
            yield made


def configuration(port: int) -> dict[str, Any]:
    """What docs/ingest.md tells to put into prometheus.yml, as fast as Prometheus goes."""
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": "dcgm", "metrics_path": "/exporter", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        ],
        "remote_write": [
            {
                "url": f"http://127.0.0.1:{port}/v1/metrics",
                "authorization": {"credentials": GATEWAY_TOKEN},
                "write_relabel_configs": [
                    {"source_labels": ["__name__"], "regex": "DCGM_FI_.*|up", "action": "keep"},
                ],
                "queue_config": {"max_shards": 1, "batch_send_deadline": "1s"},
            }
        ],
    }


@asynccontextmanager
async def prometheus(binary: Path, folder: Path, port: int) -> AsyncIterator[None]:
    """A Prometheus that scrapes and writes to ``port``; stopped by its process id."""
    file = folder / "prometheus.yml"
    await asyncio.to_thread(file.write_text, json.dumps(configuration(port)))
    process = await asyncio.create_subprocess_exec(
        binary,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}/tsdb",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=warn",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await process.communicate()
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.timeout(120)
async def test_a_real_prometheus_writes_what_it_scraped(service_binary: Callable[[str], Path], tmp_path: Path) -> None:
    """Rows of each GPU come at each scrape, units converted, NaN kept; what ends is no NaN."""
    async with site(tmp_path) as where, prometheus(service_binary("prometheus"), tmp_path, where.port):
        both = await where.rows(Topic.GPU, lambda rows: sum(row["gpu"] == 1 for row in rows) >= 2)
        where.gpus = (0,)  # the second GPU falls off: Prometheus marks its series stale
        seen = where.scrapes
        counters = where.ingest.counters
        stale = exposition(0, (1,)).count('gpu="1"')
        await where.rows(Topic.GPU, lambda _: counters.absent >= stale and where.scrapes > seen)
        rows = await where.rows(Topic.GPU, lambda rows: len(rows) > len(both))
    assert {(row["node"], row["gpu"], row["uuid"]) for row in both} == {("node-1", 0, "GPU-0"), ("node-1", 1, "GPU-1")}
    for row in rows:
        assert row["temperature_celsius"] in (40.0 + row["gpu"], None)
        assert row["gpu_utilization_percent"] in (0.0, None)
        assert row["energy_joules"] is None or 5_000_000 < row["energy_joules"] < 5_001_000
    drawn = [row["dram_active_ratio"] for row in rows]
    assert any(value is not None and value != value for value in drawn)  # noqa: PLR0124  a NaN is not itself
    assert counters.absent >= stale  # a scrape that comes too late on a busy machine makes every series stale
    assert counters.unmapped[Unmapped.UNKNOWN_NAME] > 0
    assert {status for (_, status), _ in counters.requests.items()} == {204}


async def test_a_real_opentelemetry_sdk_exports_a_jobs_numbers(tmp_path: Path) -> None:
    """The exporter of the OpenTelemetry SDK, gzip and all, is told that its points are durable."""
    reader = InMemoryMetricReader()
    resource = Resource({"nantucket.job": "gpt", "nantucket.attempt": "3", "nantucket.rank": 2})
    provider = MeterProvider(metric_readers=[reader], resource=resource)
    provider.get_meter("trainer").create_gauge("reward").set(1.25, {"nantucket.step": 41})
    async with site(tmp_path) as where:
        exporter = OTLPMetricExporter(
            endpoint=f"http://127.0.0.1:{where.port}/v1/metrics",
            headers={"Authorization": f"Bearer {JOB_TOKENS['gpt']}", "Nantucket-Job": "gpt"},
            compression=Compression.Gzip,
        )
        data = reader.get_metrics_data()
        assert data is not None
        assert await asyncio.to_thread(exporter.export, data) is MetricExportResult.SUCCESS
        (row,) = await where.rows(Topic.METRICS, bool)
        await asyncio.to_thread(exporter.shutdown)
    provider.shutdown()
    told = {name: row[name] for name in ("job", "attempt", "rank", "step", "name", "value")}
    assert told == {"job": "gpt", "attempt": "3", "rank": 2, "step": 41, "name": "reward", "value": 1.25}
