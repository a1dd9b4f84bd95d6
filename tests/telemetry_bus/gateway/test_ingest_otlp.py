"""OTLP metrics over HTTP: the real exporter's bodies and hostile ones, as protobuf and as JSON."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, Metric

from telemetry_bus import BusUnavailable, Topic
from telemetry_bus.gateway.ingest_errors import BodyTooLarge, UnreadableBody
from telemetry_bus.gateway.metric_rows import place
from telemetry_bus.gateway.otlp import DECODED_BYTES_MAX, Status, parse_json, parse_protobuf, samples_of
from telemetry_bus.gateway.series_cache import SeriesCache
from tests.telemetry_bus.gateway.ingest_scene import JOB_TOKENS, NOW, scene

NANOS = int(NOW) * 1_000_000_000
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Body:
    """A request of one resource, made from the published schema."""

    def __init__(self, **resource: str) -> None:
        self.request = ExportMetricsServiceRequest()
        found = self.request.resource_metrics.add()
        found.resource.attributes.extend(attributes(resource))
        self._scope = found.scope_metrics.add()

    def gauge(self, name: str, value: float | int | None, time: int = NANOS, flags: int = 0, **labels: object) -> Body:
        """One number of now."""
        point = self._scope.metrics.add(name=name).gauge.data_points.add(time_unix_nano=time, flags=flags)
        point.attributes.extend(attributes(labels))
        if type(value) is int:
            point.as_int = value
        elif value is not None:
            point.as_double = value
        return self

    def sum(self, name: str, value: int, temporality: AggregationTemporality.ValueType, **labels: object) -> Body:
        """One total."""
        metric = self._scope.metrics.add(name=name)
        metric.sum.aggregation_temporality = temporality
        point = metric.sum.data_points.add(time_unix_nano=NANOS, as_int=value)
        point.attributes.extend(attributes(labels))
        return self

    def metric(self) -> Metric:
        """A metric to be filled by a test."""
        return self._scope.metrics.add()

    def protobuf(self) -> bytes:
        """The body as protobuf."""
        return self.request.SerializeToString()

    def json(self) -> bytes:
        """The body as JSON."""
        return json_format.MessageToJson(self.request, indent=None).encode()


def attributes(labels: dict[str, Any]) -> list[KeyValue]:
    """Attributes; a dot in a key is written as two underscores."""
    found = []
    for key, value in labels.items():
        held = AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
        found.append(KeyValue(key=key.replace("__", "."), value=held))
    return found


forms = pytest.mark.parametrize(
    ("form", "content_type"),
    [pytest.param(Body.protobuf, PROTOBUF, id="protobuf"), pytest.param(Body.json, JSON, id="json")],
)


@forms
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_points_become_rows_and_what_has_no_place_is_told(
    form: Callable[[Body], bytes], content_type: str, packed: bool
) -> None:
    """Resource attributes are labels; gauges and totals are taken; the rest is counted in partial_success."""
    gpu: dict[str, Any] = {"gpu": "3", "UUID": "GPU-x"}
    body = Body(host__name="node-9")
    body.gauge("DCGM_FI_DEV_GPU_TEMP", 61, **gpu).gauge("DCGM_FI_DEV_POWER_USAGE", 0.0, **gpu)
    body.sum("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 5_000, CUMULATIVE, **gpu)
    body.sum("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", 4, DELTA, **gpu)
    body.gauge("system.cpu.utilization", 0.5)
    body.metric().histogram.data_points.add(time_unix_nano=NANOS, count=1)
    content = gzip.compress(form(body)) if packed else form(body)
    async with scene() as where:
        response = await where.otlp(
            content, content_type=content_type, **({"content_encoding": "gzip"} if packed else {})
        )
        assert (response.status_code, response.headers["content-type"]) == (200, content_type)
        (row,) = where.shelf.rows(Topic.GPU)
    answer = ExportMetricsServiceResponse()
    if content_type == JSON:
        json_format.Parse(response.content, answer)
    else:
        answer.ParseFromString(response.content)
    assert answer.partial_success.rejected_data_points == 3
    assert "delta: 1, not_a_number_series: 1, unknown_name: 1" in answer.partial_success.error_message
    assert (row["node"], row["gpu"], row["uuid"], row["time"]) == ("node-9", 3, "GPU-x", NOW)
    assert (row["temperature_celsius"], row["power_watts"], row["energy_joules"]) == (61.0, 0.0, 5.0)
    assert row["pcie_replay_count"] is None


@forms
async def test_a_jobs_numbers_become_metric_rows(form: Callable[[Body], bytes], content_type: str) -> None:
    """nantucket.job of the resource and nantucket.step of the point make a row; a NaN stays one, no value is none."""
    body = Body(nantucket__job="gpt", nantucket__attempt="2", nantucket__rank="1")
    body.gauge("reward", math.nan, nantucket__step=12).gauge("kl", 0.0, nantucket__step=12)
    no_value = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    body.gauge("gone", 1.0, flags=no_value, nantucket__step=12).gauge("empty", None, nantucket__step=12)
    async with scene() as where:
        response = await where.otlp(form(body), token=JOB_TOKENS["gpt"], nantucket_job="gpt", content_type=content_type)
        assert (response.status_code, response.content) == (200, b"{}" if content_type == JSON else b"")
        rows = where.shelf.rows(Topic.METRICS)
    told = [(row["job"], row["attempt"], row["rank"], row["step"], row["name"]) for row in rows]
    assert told == [("gpt", "2", 1, 12, "reward"), ("gpt", "2", 1, 12, "kl")]
    assert math.isnan(rows[0]["value"])
    assert rows[1]["value"] == 0.0


async def test_nan_in_json_is_a_string() -> None:
    """JSON has no NaN: the three strings are numbers, the bare words are refused."""
    body = Body(nantucket__job="gpt").gauge("reward", math.nan, nantucket__step=1).json()
    assert b'"NaN"' in body
    async with scene() as where:
        assert (await where.otlp(body, content_type=JSON)).status_code == 200
        refused = await where.otlp(body.replace(b'"NaN"', b"NaN"), content_type=JSON)
        assert (refused.status_code, refused.json()["code"]) == (400, 3)
        assert 'expected the string "NaN"' in refused.json()["message"]


def _point(**members: object) -> str:
    points = [{"timeUnixNano": str(NANOS), **members}]
    return json.dumps(
        {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "x", "gauge": {"dataPoints": points}}]}]}]}
    )


@pytest.mark.parametrize(
    ("body", "status", "content_type"),
    [
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", 400, PROTOBUF, id="a-length-beyond-the-end"),
        pytest.param(Body().gauge("x", 1.0).protobuf()[:-3], 400, PROTOBUF, id="cut-short"),
        pytest.param(b"", 400, JSON, id="empty-json"),
        pytest.param(b"[]", 400, JSON, id="a-list"),
        pytest.param(b"[" * 100_000, 400, JSON, id="deep"),
        pytest.param(b'{"resourceMetrics":' * 500 + b"[]" + b"}" * 500, 400, JSON, id="deep-objects"),
        pytest.param(_point(asDouble=True), 400, JSON, id="true-as-a-number"),
        pytest.param(_point(asInt="9" * 400), 400, JSON, id="a-huge-integer"),
        pytest.param(_point(asDouble="1e999x"), 400, JSON, id="no-number"),
        pytest.param(_point(asInt="1", timeUnixNano=-1), 400, JSON, id="a-negative-time"),
        pytest.param(b"{}" * 300_000, 413, JSON, id="half-a-million-objects"),
        pytest.param(b"\xff", 400, JSON, id="not-utf-8"),
        pytest.param(b"x", 415, "text/plain", id="another-type"),
        pytest.param(bytes(DECODED_BYTES_MAX + 1), 413, PROTOBUF, id="too-large"),
    ],
)
async def test_a_hostile_body_is_refused_in_its_own_form(body: bytes | str, status: int, content_type: str) -> None:
    """Errors are a google.rpc.Status in the form of the request, as OTLP has it, and say what was expected."""
    if status == 413 and content_type == JSON:
        body = b'{"a":[' + b"{}," * 600_000 + b"{}]}"
    async with scene() as where:
        response = await where.otlp(body, content_type=content_type)
        assert response.status_code == status
        if content_type == PROTOBUF:
            told = Status.FromString(response.content)
            assert (told.code, "expected" in told.message) == (3, True)
        else:
            assert "expected" in response.text
        assert where.ingest.room.used == 0
        assert (await where.otlp(Body().gauge("x", 1.0).protobuf())).status_code == 200


async def test_an_empty_protobuf_body_is_an_empty_request() -> None:
    """Nothing at all is a valid message without points: it is taken, and nothing is published."""
    async with scene() as where:
        response = await where.otlp(b"")
        assert (response.status_code, response.content) == (200, b"")
        assert where.shelf.frames == []


async def test_a_gzip_bomb_is_refused_before_it_is_unpacked() -> None:
    """200 MiB of zeros in 200 KB are a 413."""
    async with scene() as where:
        response = await where.otlp(gzip.compress(bytes(200 * 1024 * 1024)), content_encoding="gzip")
        assert response.status_code == 413
        assert "unpacked" in Status.FromString(response.content).message


async def test_tokens_and_a_bus_that_is_away_are_told_in_its_own_form() -> None:
    """401, 403 and 503 with Retry-After, with a Status; a collector sends the last again."""
    body = Body(host__name="n").gauge("DCGM_FI_DEV_GPU_TEMP", 1.0, gpu="0").protobuf()
    async with scene() as where:
        assert (await where.otlp(body, token=None)).status_code == 401
        refused = await where.otlp(body, token="wrong")
        assert (refused.status_code, Status.FromString(refused.content).code) == (403, 3)
        where.shelf.away = BusUnavailable("file:///x", "append", None)
        away = await where.otlp(body)
        assert (away.status_code, away.headers["retry-after"]) == (503, "1")
        assert Status.FromString(away.content).code == 14


NAMES = ["resourceMetrics", "scopeMetrics", "metrics", "name", "gauge", "sum", "dataPoints", "asDouble", "asInt"]
NAMES += ["timeUnixNano", "attributes", "key", "value", "stringValue", "exemplars", "traceId", "flags"]
OTLP_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("NaN"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=14,
)


@given(OTLP_JSON)
def test_any_json_is_samples_or_is_refused(body: Any) -> None:
    """No JSON makes the reader raise anything but a refusal."""
    text = json.dumps(body).encode("utf-8", "surrogatepass")
    refused = "expected"
    try:
        place(samples_of(parse_json(text), SeriesCache()), NOW, None)
    except (UnreadableBody, BodyTooLarge) as refusal:
        refused = str(refusal)
    assert "expected" in refused


@given(st.binary(max_size=200))
def test_any_bytes_are_samples_or_are_refused(data: bytes) -> None:
    """No bytes make the reader raise anything but a refusal."""
    refused = "expected"
    try:
        place(samples_of(parse_protobuf(data), SeriesCache()), NOW, None)
    except (UnreadableBody, BodyTooLarge) as refusal:
        refused = str(refusal)
    assert "expected" in refused, base64.b64encode(data)
