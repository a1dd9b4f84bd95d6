"""OTLP/HTTP metrics: a body in, samples out, by the published schema (``opentelemetry-proto``). No I/O.

Gauges and cumulative sums are numbers. Resource attributes count as labels, those of the data point before them, and a
dot in a key reads as ``_``.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, Metric

from telemetry_bus.gateway.ingest_errors import BodyTooLarge, UnreadableBody
from telemetry_bus.gateway.metric_mapping import Series, Unmapped
from telemetry_bus.gateway.metric_rows import STALE, Placed, Samples
from telemetry_bus.gateway.protobuf_schema import INT32, ONE, STRING, message_classes
from telemetry_bus.gateway.series_cache import SeriesCache

DECODED_BYTES_MAX = 8 * 1024 * 1024
"""A collector sends 8,192 data points at a time, of some 300 bytes each: 2.4 MiB."""
POINTS_MAX = 65_536
OBJECTS_MAX = 262_144
"""Of a JSON body: a data point of 15 attributes has 31 objects in 1.2 KiB, so that 8 MiB of them have 216,000."""
NANOSECONDS = 1e9
NO_TIME = -1
INVALID_ARGUMENT = 3
UNAVAILABLE = 14
"""Codes of ``google.rpc.Status``, the body of every error of OTLP/HTTP."""

_STATUS_FIELDS = [("code", 1, INT32, ONE), ("message", 2, STRING, ONE)]
Status: Any = message_classes("nantucket.rpc", {"Status": _STATUS_FIELDS})["Status"]
Pairs = tuple[tuple[str, str], ...]


def parse_protobuf(data: bytes) -> ExportMetricsServiceRequest:
    """The request in a body of ``application/x-protobuf``."""
    try:
        return ExportMetricsServiceRequest.FromString(data)
    except DecodeError as error:
        raise UnreadableBody(f"the body: expected an ExportMetricsServiceRequest, found none: {error}") from error


def parse_json(data: bytes) -> ExportMetricsServiceRequest:
    """The request in a body of ``application/json``."""
    if data.count(b"{") > OBJECTS_MAX:
        raise BodyTooLarge(f"more than {OBJECTS_MAX} JSON objects", OBJECTS_MAX)
    try:
        body = json.loads(data.decode(), object_hook=_no_bool_for_a_number, parse_constant=_no_constant)
        if not isinstance(body, dict):
            raise ValueError("expected a JSON object")
        return json_format.ParseDict(body, ExportMetricsServiceRequest(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise UnreadableBody(f"the body: expected OTLP metrics as JSON, found what is none: {error}") from error


def _no_bool_for_a_number(value: dict[str, Any]) -> dict[str, Any]:
    for name in ("asDouble", "asInt", "as_double", "as_int", "timeUnixNano", "time_unix_nano"):
        if isinstance(value.get(name), bool):
            raise ValueError(f"{name}: expected a number, found {json.dumps(value[name])}")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f'{word} is not JSON; expected the string "{word}"')


def samples_of(request: ExportMetricsServiceRequest, cache: SeriesCache) -> Samples:
    """The samples of a request."""
    found = _Found(cache)
    for resource in found.bounded(request.resource_metrics):
        shared = _pairs(resource.resource.attributes)
        for scope in found.bounded(resource.scope_metrics):
            for metric in found.bounded(scope.metrics):
                found.add(metric, shared)
    seconds = np.array(found.times, dtype=np.float64) / NANOSECONDS
    values = np.array(found.values, dtype=np.float64)
    return Samples(found.series, [1] * len(found.series), seconds, values, found.unmapped)


class _Found:
    """Data points as they are found."""

    def __init__(self, cache: SeriesCache) -> None:
        self.series: list[Series] = []
        self.times: list[int] = []
        self.values: list[float] = []
        self.unmapped: Counter[Unmapped] = Counter()
        self._cache = cache
        self._messages = 0

    def bounded(self, several: Any) -> Any:
        """The same, if a request may have as many more messages."""
        self._messages += len(several)
        if self._messages > POINTS_MAX:
            raise BodyTooLarge(f"more than {POINTS_MAX} data points and what they stand in", POINTS_MAX)
        return several

    def add(self, metric: Metric, shared: Pairs) -> None:
        """Take the metric's points."""
        kind = metric.WhichOneof("data")
        points: Any = () if kind is None else self.bounded(getattr(metric, kind).data_points)
        if kind == "sum" and metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA:
            self.unmapped[Unmapped.DELTA] += len(points)
        elif kind in ("gauge", "sum"):
            self._add_numbers(metric.name, shared, points)
        elif points:
            self.unmapped[Unmapped.NOT_A_NUMBER_SERIES] += len(points)

    def _add_numbers(self, name: str, shared: Pairs, points: Any) -> None:
        known, series, times, values = self._cache.get, self.series, self.times, self.values
        for point in points:
            key = (name, shared, _pairs(point.attributes))
            series.append(known(key) or self._learn(key))
            times.append(point.time_unix_nano or NO_TIME)
            which = point.WhichOneof("value")
            if which is None or point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK:
                values.append(STALE)
            else:
                values.append(float(getattr(point, which)))

    def _learn(self, key: tuple[str, Pairs, Pairs]) -> Series:
        name, shared, own = key
        labels = {word.replace(".", "_"): value for word, value in (*shared, *own)}
        size = sum(len(word) + len(value) for word, value in (*shared, *own)) + len(name)
        return self._cache.learn(key, size, name, labels)


def _pairs(attributes: Iterable[KeyValue]) -> Pairs:
    return tuple([(one.key, one.value.string_value or _text(one.value)) for one in attributes])


def _text(value: Any) -> str:
    """An attribute that is no text, as one; lists and the like are none of ours."""
    kind = value.WhichOneof("value")
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return str(getattr(value, kind)) if kind in ("int_value", "double_value") else ""


def answer(placed: Placed) -> ExportMetricsServiceResponse:
    """The response: what was not taken is said, and is no error."""
    response = ExportMetricsServiceResponse()
    if rejected := sum(placed.unmapped.values()):
        response.partial_success.rejected_data_points = rejected
        reasons = ", ".join(f"{reason.value}: {count}" for reason, count in sorted(placed.unmapped.items()))
        response.partial_success.error_message = (
            f"data points that have no place here ({reasons}); docs/ingest.md lists what has"
        )
    return response
