"""What the gateway's HTTP entries cost: `python -m scripts.measure_ingest` prints the figures of docs/ingest.md.

From a body to encoded frames, in CPU time of one thread, the best of nine; every series was seen before, as a scraper's
are. No network and no bus: what those cost is measured by `nantucket bench`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from telemetry_bus.frames import encode
from telemetry_bus.gateway import otlp, remote_write
from telemetry_bus.gateway.latest_rows import LatestRows
from telemetry_bus.gateway.metric_mapping import DCGM_NAMES
from telemetry_bus.gateway.metric_rows import Samples, place
from telemetry_bus.gateway.numbering import Numbering
from telemetry_bus.gateway.pieces import Piece
from telemetry_bus.gateway.series_cache import SeriesCache
from telemetry_bus.gateway.train_json import read_rows

NOW = 1_764_000_000.0
NODES, GPUS, METRICS, ROWS = 6, 8, 40, 1_024
ROUNDS = 9


def series() -> Iterator[tuple[str, dict[str, str]]]:
    """Names and labels, as a scrape of dcgm-exporters leaves them."""
    for node in range(NODES):
        for name in list(DCGM_NAMES)[:METRICS]:
            for gpu in range(GPUS):
                yield (
                    name,
                    {
                        "DCGM_FI_DRIVER_VERSION": "550.144.03",
                        "Hostname": f"node-{node:05}",
                        "UUID": f"GPU-8b2281de-6d3c-22ed-0ec8-d3b8{node:04}{gpu:04}",
                        "device": f"nvidia{gpu}",
                        "gpu": str(gpu),
                        "instance": f"10.0.0.{node}:9400",
                        "job": "dcgm",
                        "modelName": "NVIDIA H100 80GB HBM3",
                        "pci_bus_id": "00000000:8D:00.0",
                    },
                )


def write_1() -> bytes:
    """A body of remote write 1.0."""
    request = remote_write.WriteRequest()
    for name, labels in series():
        one = request.timeseries.add()
        for word, value in sorted({"__name__": name, **labels}.items()):
            one.labels.append(remote_write.Label(name=word, value=value).SerializeToString())
        one.samples.add(value=42.5, timestamp=int(NOW * 1_000))
    return pa.Codec("snappy").compress(request.SerializeToString(), asbytes=True)


def write_2() -> bytes:
    """A body of remote write 2.0."""
    symbols: dict[str, int] = {"": 0}
    request = remote_write.Request()
    for name, labels in series():
        words = [word for pair in sorted({"__name__": name, **labels}.items()) for word in pair]
        one = request.timeseries.add(labels_refs=[symbols.setdefault(word, len(symbols)) for word in words])
        one.samples.add(value=42.5, timestamp=int(NOW * 1_000))
    request.symbols.extend(word.encode() for word in symbols)
    return pa.Codec("snappy").compress(request.SerializeToString(), asbytes=True)


def export() -> ExportMetricsServiceRequest:
    """A request of OTLP."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for name, labels in series():
        point = scope.metrics.add(name=name).gauge.data_points.add(as_double=42.5, time_unix_nano=int(NOW * 1e9))
        point.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in labels.items())
    return request


def rows() -> bytes:
    """Training rows of ten columns."""
    values = {"loss": 2.5, "grad_norm": 1.0, "lr": 1e-4, "step_seconds": 0.4, "tokens": 4_096, "time": NOW}
    return json.dumps(
        [{"job": "gpt", "attempt": "1", "rank": rank, "step": 7, **values} for rank in range(ROWS)]
    ).encode()


def measure(name: str, count: int, work: Callable[[], list[Piece]]) -> None:
    """Print how many a CPU-second `work` takes."""
    numbering = Numbering()
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first one meets every series for the first time, and is not the best
        before = time.process_time()
        for piece in work():
            encode(piece.numbered(numbering))
        best = min(best, time.process_time() - before)
    print(f"{name}: {count / best:,.0f} a CPU-second")


def main() -> None:
    """Measure every protocol."""
    caches = {name: SeriesCache() for name in ("1", "2", "otlp")}
    latest = LatestRows()

    def placed(samples: Samples) -> list[Piece]:
        return place(samples, NOW, None, None, latest).pieces

    first, second, request, trained = write_1(), write_2(), export(), rows()
    binary, text = request.SerializeToString(), json_format.MessageToJson(request, indent=None).encode()
    count = NODES * GPUS * METRICS
    unsnap = remote_write.unsnap
    measure("remote write 1.0", count, lambda: placed(remote_write.read_write_request(unsnap(first), caches["1"])))
    measure("remote write 2.0", count, lambda: placed(remote_write.read_request_2(unsnap(second), caches["2"])))
    measure("OTLP, protobuf", count, lambda: placed(otlp.samples_of(otlp.parse_protobuf(binary), caches["otlp"])))
    measure("OTLP, JSON", count, lambda: placed(otlp.samples_of(otlp.parse_json(text), caches["otlp"])))
    measure("training rows", ROWS, lambda: list(read_rows(trained, "application/json", NOW).pieces(NOW, None)))


if __name__ == "__main__":
    main()
