"""The API's page in the documentation is held against the API itself."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from telemetry_bus.frames import FrameMaker
from tests.dashboards.world import World

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


async def test_every_route_and_every_metric_is_in_the_documentation(here: World) -> None:
    """What the server answers and what the page lists are the same, in both directions."""
    text = PAGE.read_text()
    await here.gpus(FrameMaker("node-1"), power_watts=[1.0])
    routes = {
        path.replace("{incident_id}", "{id}") for path in (await here.http.get("/api/openapi.json")).json()["paths"]
    }
    assert {path for path in routes if f"`{path}`" not in text} == set()
    exposed = (await here.http.get("/metrics")).text
    names = set(re.findall(r"^# TYPE (\S+) ", exposed, re.MULTILINE))
    named = {name.removesuffix("_total") for name in re.findall(r"`(nantucket_\w+)", text)}
    assert names == named
    assert list(text_string_to_metric_families(exposed.replace("# EOF\n", "")))
