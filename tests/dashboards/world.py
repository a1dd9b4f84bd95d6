"""A small world for the dashboards: the real bus in a folder, the real server on a free port, incidents in a list."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from dashboards.app import make_app
from dashboards.server import serve
from dashboards.services import Services
from telemetry_bus.bus import Bus, open_bus
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import Topic


class Token:
    """A secret, as the command line hands one in."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


class IncidentList:
    """A real, if small, keeper of incidents."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.revision = 0
        self.away = False
        self.push = asyncio.Event()

    def put(self, incident: dict[str, Any]) -> None:
        self.revision += 1
        self.held[incident["id"]] = incident | {"revision": self.revision}
        self.push.set()

    async def incidents(self, limit: int = 200, open_only: bool = False) -> list[dict[str, Any]]:
        await self.ready()
        wanted = [one for one in self.held.values() if not open_only or one["status"] == "firing"]
        return list(reversed(wanted))[:limit]

    async def incident(self, id: str) -> dict[str, Any] | None:  # noqa: A002
        await self.ready()
        return self.held.get(id)

    async def changed_since(self, revision: int, limit: int = 200) -> tuple[int, list[dict[str, Any]]]:
        await self.ready()
        changed = [one for one in self.held.values() if one["revision"] > revision]
        changed.sort(key=lambda one: (one["status"] == "resolved", -one["revision"]))
        return self.revision, changed[:limit]

    async def open_by_tier(self) -> dict[str, int]:
        await self.ready()
        return dict(Counter(one["tier"] for one in self.held.values() if one["status"] == "firing"))

    async def ready(self) -> None:
        if self.away:
            raise ConnectionError("the store is away")


def incident(name: str = "i-1", **changes: Any) -> dict[str, Any]:
    """An incident as alerting's store gives it."""
    return {
        "id": name,
        "paging_key": f"job/run/attempt/a1/nonfinite/{name}",
        "kind": "nonfinite",
        "severity": "critical",
        "tier": "page",
        "title": "Non-finite gradient norm",
        "job": "run",
        "attempt": "a1",
        "region": None,
        "onset_step": 7,
        "onset_time": 1_700_000_000.0,
        "detected_step": 7,
        "detected_time": 1_700_000_000.5,
        "where": {"rank": 3, "node": "node-1", "gpu": 3, "uuid": None, "parameter": "layers.2.w"},
        "evidence": {"grad_norm": float("nan"), "loss": 2.5},
        "likely_causes": [{"cause": "overflow", "confidence": 0.8, "evidence": "float16 gradients grew"}],
        "ranks_affected": 8,
        "gpus_affected": 8,
        "last_good_checkpoint": None,
        "cost": {"usd_per_hour": 16.0, "usd_so_far": 0.01},
        "blind": [],
        "links": {"incident": None, "chart": None, "runbook": None, "silence": None},
        "status": "firing",
        "findings": 1,
        "simulated": False,
        "deliveries": [
            {"receiver": "pager", "transition": "firing", "state": "delivered", "attempts": 1, "last_error": None}
        ],
    } | changes


@dataclass
class World:
    """A running server and everything around it."""

    bus: Bus
    app: FastAPI
    incidents: IncidentList
    clock: SystemClock
    port: int
    http: httpx.AsyncClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def publish(self, maker: FrameMaker, topic: Topic, schema_id: str, columns: Mapping[str, Any]) -> None:
        """Put one frame on the bus and wait until the live state has it."""
        now = self.clock.now()
        rows = len(next(iter(columns.values())))
        frame = maker.make(schema_id, {"time": [now] * rows, **columns}, now)
        await self.publish_payload(topic, encode(frame))

    async def publish_payload(self, topic: Topic, payload: bytes) -> None:
        """Put these bytes on the bus, a frame or not, and wait until the live state has seen them."""
        before = self.services.live.frames[topic]
        await self.bus.publish(topic, [payload])
        while self.services.live.frames[topic] == before:
            await asyncio.sleep(0.005)

    async def gpus(self, maker: FrameMaker, **columns: Any) -> None:
        """One frame of GPUs 0, 1, ... of the node ``node-1``."""
        rows = len(next(iter(columns.values())))
        named = {"node": ["node-1"] * rows, "gpu": list(range(rows)), "simulated": [False] * rows}
        await self.publish(maker, Topic.GPU, "gpu/1", named | columns)

    async def steps(self, maker: FrameMaker, first: int = 0, **columns: Any) -> None:
        """Steps ``first``, ``first`` + 1, ... of rank 0 of the job ``run``."""
        rows = len(next(iter(columns.values())))
        named = {"job": ["run"] * rows, "attempt": ["a1"] * rows, "rank": [0] * rows}
        await self.publish(maker, Topic.TRAIN, "train/1", named | {"step": list(range(first, first + rows))} | columns)


@asynccontextmanager
async def world(folder: Path, **options: Any) -> AsyncIterator[World]:
    """A server over a log in ``folder``; ``options`` go to :func:`make_app`."""
    clock, incidents = SystemClock(), IncidentList()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(open_bus(f"file://{folder / 'bus'}", clock))
        app = make_app(bus, incidents, clock, push=incidents.push, **options)
        port = await stack.enter_async_context(serve(app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10))
        made = World(bus, app, incidents, clock, port, http)
        await made.services.fan.caught_up()
        yield made


async def events(answer: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of an answer: name and data."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "), parse_constant=_refuse_constant)


def strict_json(text: str) -> Any:
    """JSON by the letter: a bare NaN or Infinity is an error."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")
