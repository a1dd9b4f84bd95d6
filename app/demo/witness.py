"""What the demo compares: the job's ledger, the deliveries that the receiver got, and the dashboard's own stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

LEDGER_LOOK_SECONDS = 0.05
STREAM_SECONDS = 30.0


@dataclass(slots=True)
class Watched:
    """What came over the dashboard's stream. ``incidents`` holds the newest state of each incident, by id."""

    events: int = 0
    incidents: dict[str, dict[str, Any]] = field(default_factory=dict)
    connected: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, name: str, data: str) -> None:
        """Count one event and keep its incidents."""
        self.events += 1
        if name == "incidents":
            for incident in incidents_in(json.loads(data)):
                self.incidents[incident["id"]] = incident


def incidents_in(value: Any) -> list[dict[str, Any]]:
    """The incident objects in an ``incidents`` event."""
    items = value["incidents"] if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict) and "id" in item]


async def watch_stream(url: str, watched: Watched) -> None:
    """Read the page's own stream until cancelled."""
    timeout = httpx.Timeout(STREAM_SECONDS)
    async with httpx.AsyncClient(timeout=timeout) as client, client.stream("GET", f"{url}/api/v1/stream") as response:
        response.raise_for_status()
        watched.connected.set()
        async for name, data in server_sent_events(response.aiter_lines()):
            watched.take(name, data)


async def server_sent_events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    """Event names and data of a ``text/event-stream``, as the HTML standard cuts it."""
    name, data = "message", []
    async for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield name, "\n".join(data)
            name, data = "message", []


async def ledger_entry(path: Path, timeout_seconds: float) -> dict[str, Any] | None:
    """The ledger's line about the first bad step, once it is there; ``None`` if there is none within the time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                for entry in await asyncio.to_thread(_ledger, path):
                    if "parameter" in entry:
                        return entry
                await asyncio.sleep(LEDGER_LOOK_SECONDS)
    except TimeoutError:
        return None


def _ledger(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def agrees(body: Mapping[str, Any], ledger: Mapping[str, Any]) -> bool:
    """Whether a delivery names what the ledger says: job, attempt, step, rank and parameter."""
    incident = body["incident"]
    return bool(
        incident["job"] == ledger["job"]
        and incident["attempt"] == ledger["attempt"]
        and incident["detected_step"] == ledger["step"]
        and incident["where"]["rank"] == ledger["rank"]
        and incident["where"]["parameter"] == ledger["parameter"]
    )


async def frames_counted(url: str) -> tuple[int, int]:
    """Frames that the dashboard has seen, and frames that are outstanding or lost, from its ``/metrics``."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics", headers={"accept": "text/plain"})).raise_for_status().text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    missing = totals["nantucket_frames_outstanding"] + totals["nantucket_frames_lost_total"]
    return int(totals["nantucket_frames_total"]), int(missing)
