"""The HTTP entries with a bus behind them that keeps what it takes and can be away; bodies as clients make them."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pyarrow as pa
from fastapi import FastAPI

from telemetry_bus import Frame, Intake, Record, Topic, encode
from telemetry_bus.gateway.ingest import Ingest, IngestOptions
from telemetry_bus.gateway.ingest_routes import ingest_router
from telemetry_bus.runtime.clock import ManualClock

NOW = 1_764_000_000.0
GATEWAY_TOKEN = "the-gateways-own"
JOB_TOKENS = {"gpt": "token-of-gpt", "other": "token-of-other"}


@dataclass
class Shelf:
    """Takes frames as a bus would: encoded on the way in, and read back through a reader's own door."""

    intake: Intake = field(default_factory=Intake)
    away: Exception | None = None
    frames: list[tuple[Topic, Frame, str]] = field(default_factory=list)
    written: list[Record] = field(default_factory=list)

    async def accept(self, topic: Topic, frame: Frame, key: str) -> None:
        """Take a frame, or raise what is wrong with the bus."""
        payload = encode(frame)
        if self.away is not None:
            raise self.away
        self.frames.append((topic, frame, key))
        self.written.append(Record(topic, 0, len(self.written), NOW, payload))

    def rows(self, topic: Topic) -> list[dict[str, Any]]:
        """The rows of a topic as a reader gets them; nothing of them may be refused."""
        found: list[dict[str, Any]] = []
        for record in self.written:
            if record.topic is not topic:
                continue
            taken = Intake().take(record)
            assert taken.refusals == ()
            frame = taken.frame
            if frame is not None:
                rows = frame.batch.to_pylist()
                found += [{**row, "time": time} for row, time in zip(rows, frame.times().tolist(), strict=True)]
        return found


@dataclass
class Scene:
    """The application, its client, and what became of requests."""

    shelf: Shelf
    ingest: Ingest
    client: httpx.AsyncClient

    async def post(self, path: str, content: bytes | str, **headers: str) -> httpx.Response:
        """Send a body with these headers (``content_type`` is ``Content-Type``)."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=content, headers=sent)

    async def train(
        self, content: bytes | str, token: str | None = JOB_TOKENS["gpt"], **headers: str
    ) -> httpx.Response:
        """Send training rows."""
        sent = {"content_type": "application/json", **headers}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        return await self.post("/v1/train", content, **sent)

    async def remote_write(self, body: bytes, token: str | None = GATEWAY_TOKEN, **headers: str) -> httpx.Response:
        """Send what Prometheus would."""
        sent = {
            "content_type": "application/x-protobuf",
            "content_encoding": "snappy",
            "x_prometheus_remote_write_version": "0.1.0",
            **headers,
        }
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        return await self.post("/v1/metrics", body, **sent)

    async def otlp(self, body: bytes | str, token: str | None = GATEWAY_TOKEN, **headers: str) -> httpx.Response:
        """Send what an OpenTelemetry exporter would."""
        sent = {"content_type": "application/x-protobuf", **headers}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        return await self.post("/v1/metrics", body, **sent)


def make_app(shelf: Shelf, **options: Any) -> tuple[FastAPI, Ingest]:
    """An application of the two entries alone."""
    clock = ManualClock(NOW)
    known = {"check_job": _check_job, "check_gateway": _check_gateway, "clock": clock, "accept": shelf.accept}
    ingest = Ingest(IngestOptions(**{**known, **options}))
    app = FastAPI()
    app.include_router(ingest_router(ingest))
    return app, ingest


@asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[Scene]:
    """The entries, ready to be posted to."""
    shelf = Shelf()
    app, ingest = make_app(shelf, **options)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Scene(shelf, ingest, client)


def _check_job(job: str, token: str) -> bool:
    return JOB_TOKENS.get(job) == token


def _check_gateway(token: str | None) -> bool:
    return token == GATEWAY_TOKEN


def varint(number: int) -> bytes:
    """A protobuf varint."""
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def part(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def sample(value: float | bytes, millis: int) -> bytes:
    """A ``Sample`` of either version of remote write; a value may be given as its eight bytes."""
    return b"\x09" + (value if isinstance(value, bytes) else struct.pack("<d", value)) + b"\x10" + varint(millis)


Points = Iterable[tuple[Mapping[str, str], Sequence[bytes]]]


def write_request(series: Points) -> bytes:
    """A ``prometheus.WriteRequest``, written by hand from the published field numbers."""
    found = b""
    for labels, samples in series:
        pairs = b"".join(part(1, part(1, n.encode()) + part(2, v.encode())) for n, v in sorted(labels.items()))
        found += part(1, pairs + b"".join(part(2, one) for one in samples))
    return found


def request_2(series: Points) -> bytes:
    """An ``io.prometheus.write.v2.Request``, written by hand from the published field numbers."""
    symbols = [""]
    found = b""
    for labels, samples in series:
        refs = b""
        for word in (word for pair in sorted(labels.items()) for word in pair):
            if word not in symbols:
                symbols.append(word)
            refs += varint(symbols.index(word))
        found += part(5, part(1, refs) + b"".join(part(2, one) for one in samples))
    return b"".join(part(4, symbol.encode()) for symbol in symbols) + found


def snap(data: bytes) -> bytes:
    """A raw snappy block."""
    packed: bytes = pa.Codec("snappy").compress(data, asbytes=True)
    return packed


def dcgm(name: str, gpu: int = 0, node: str = "node-1", **labels: str) -> dict[str, str]:
    """The labels of a series of dcgm-exporter, as a scrape by Prometheus leaves them."""
    own = {"gpu": str(gpu), "UUID": f"GPU-{node}-{gpu}", "Hostname": node, "device": f"nvidia{gpu}", "job": "dcgm"}
    return {"__name__": name, "instance": "10.0.0.1:9400", "modelName": "NVIDIA H100 80GB HBM3", **own, **labels}
