"""The API, over real HTTP: absent, zero and NaN stay three things, and every error is a problem that says why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dashboards.errors import StoreUnavailable
from dashboards.guarded import GuardedSource
from dashboards.incidents import IncidentFeed, NoIncidents
from dashboards.live import Live
from dashboards.stream import Broadcast
from telemetry_bus.bus import Record, open_bus
from telemetry_bus.fanout import FanOut
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.topics import Topic
from tests.dashboards.world import IncidentList, World, incident, strict_json, world

NAN, INF = float("nan"), float("inf")


async def test_absent_zero_and_nan_of_a_gpu_are_three_answers(here: World) -> None:
    """A GPU's reading that is absent is null, that is zero is 0.0, and that is NaN is the string."""
    await here.gpus(FrameMaker("node-1"), gpu_utilization_percent=[None, 0.0, NAN, INF])
    rows = strict_json((await here.http.get("/api/v1/fleet")).text)["rows"]
    assert [row["gpu_utilization_percent"] for row in rows] == [None, 0.0, "NaN", "Infinity"]
    assert [row["power_watts"] for row in rows] == [None] * 4


async def test_absent_zero_and_nan_of_a_curve_are_three_answers(here: World) -> None:
    """A step without a loss, with a loss of zero and with a NaN loss differ, in the curve and in the list."""
    await here.steps(FrameMaker("sdk"), loss=[None, 0.0, NAN], grad_norm=[-INF, 1.0, 2.0])
    detail = strict_json((await here.http.get("/api/v1/jobs/run")).text)
    assert detail["curve"]["loss"] == [None, 0.0, "NaN"]
    assert detail["curve"]["grad_norm"] == ["-Infinity", 1.0, 2.0]
    assert detail["first_nonfinite"] == {
        "step": 0,
        "rank": 0,
        "what": ["grad_norm"],
        "parameter": None,
        "time": pytest.approx(here.clock.now(), abs=60),
    }
    (line,) = strict_json((await here.http.get("/api/v1/jobs")).text)["jobs"]
    assert line["loss"] == "NaN"


async def test_a_nan_in_an_incident_is_a_string(here: World) -> None:
    """Evidence with a NaN comes out of both incident endpoints as strict JSON."""
    here.incidents.put(incident())
    for path in ("/api/v1/incidents", "/api/v1/incidents/i-1"):
        answer = await here.http.get(path)
        assert answer.status_code == 200
        assert strict_json(answer.text)
        assert '"grad_norm":"NaN"' in answer.text


async def test_a_nan_metric_of_a_job_is_a_string_and_an_absent_one_null(here: World) -> None:
    """Named numbers keep the three apart."""
    columns = {
        "job": ["run"] * 3,
        "attempt": ["a1"] * 3,
        "rank": [0] * 3,
        "step": [1] * 3,
        "name": ["reward", "kl", "entropy"],
        "value": [NAN, None, 0.0],
    }
    await here.publish(FrameMaker("sdk"), Topic.METRICS, "metric/1", columns)
    assert strict_json((await here.http.get("/api/v1/jobs/run")).text)["metrics"] == {
        "reward": "NaN",
        "kl": None,
        "entropy": 0.0,
    }


async def test_the_metrics_are_openmetrics_with_every_reason_at_zero(here: World) -> None:
    """Prometheus sees all series from the start, a NaN as NaN, and no series for what is absent."""
    await here.gpus(FrameMaker("node-1"), gpu_utilization_percent=[NAN, None, 5.0], uuid=["a", "b", "c"])
    here.incidents.put(incident())
    while here.services.feed.revision == 0:
        await here.services.feed.refresh()
    answer = await here.http.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    text = answer.text
    assert text.endswith("# EOF\n")
    assert 'nantucket_frames_total{topic="telemetry.gpu"} 1.0' in text
    assert 'nantucket_frames_refused_total{reason="checksum"} 0.0' in text
    assert 'nantucket_incidents_open{tier="page"} 1.0' in text
    assert 'nantucket_gpu_utilization_percent{gpu="0",node="node-1",simulated="false",uuid="a"} NaN' in text
    assert 'gpu="1",node="node-1"' not in text


async def test_missing_and_repeated_frames_are_counted(here: World) -> None:
    """A frame that was made and never came is outstanding; one that came twice is a duplicate."""
    maker = FrameMaker("node-1")
    await here.gpus(maker, power_watts=[1.0])
    maker.seq += 3
    await here.gpus(maker, power_watts=[2.0])
    maker.seq -= 1
    await here.gpus(maker, power_watts=[2.0])
    text = (await here.http.get("/metrics")).text
    assert "nantucket_frames_outstanding 3.0" in text
    assert "nantucket_frames_duplicate_total 1.0" in text


async def test_what_the_page_skipped_itself_is_not_called_missing(tmp_path: Path) -> None:
    """A burst larger than the ring moves the live reader forward: the frames that it left out are skipped, and a frame
    that its maker never sent afterwards is still missing."""
    async with world(tmp_path, ring_bytes=20_000) as here:
        live, maker = here.services.live, FrameMaker("node-1")

        def payload() -> bytes:
            now = here.clock.now()
            columns = {"time": [now], "node": ["node-1"], "gpu": [0], "simulated": [False]}
            return encode(maker.make("gpu/1", columns, now))

        await here.bus.publish(Topic.GPU, [payload()])
        await until(lambda: live.frames[Topic.GPU] == 1)
        await here.bus.publish(Topic.GPU, [payload() for _ in range(200)])
        await until(lambda: live.skipped + live.frames[Topic.GPU] == 201)
        assert live.skipped > 0
        assert live.frame_counts()["missing"] == 0
        assert live.frame_counts()["duplicate"] == 0
        await here.bus.publish(Topic.GPU, [payload()])
        payload()
        await here.bus.publish(Topic.GPU, [payload()])
        await until(lambda: live.frame_counts()["missing"] == 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_bytes_that_are_no_frame_are_counted_with_their_reason_and_stop_nothing(here: World) -> None:
    """What cannot be read is refused; the next frame is shown."""
    await here.publish_payload(Topic.GPU, b"rubbish that is long enough to be looked at")
    await here.gpus(FrameMaker("node-1"), power_watts=[1.0])
    assert 'refused_total{reason="not_a_frame"} 1.0' in (await here.http.get("/metrics")).text


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nothing/here", 404, "/nothing/here"),
        ("GET", "/api/v1/jobs/none", 404, "no job 'none'"),
        ("GET", "/api/v1/incidents/none", 404, "no incident 'none'"),
        ("GET", "/assets/..%2Findex.html", 404, ""),
        ("GET", "/assets/%2e%2e", 404, ""),
        ("POST", "/api/v1/fleet", 405, "GET"),
        ("GET", "/api/v1/fleet?limit=0", 422, "limit"),
        ("GET", "/api/v1/fleet?limit=many", 422, "limit"),
        ("GET", "/api/v1/incidents?limit=1000000", 422, "limit"),
        ("GET", "/api/v1/frames/nonsense", 422, "topic"),
        ("GET", "/api/v1/frames/telemetry.gpu?offset=-1", 422, "offset"),
        ("GET", "/api/v1/frames/telemetry.gpu?offset=99999999999999999999", 422, "offset"),
        ("GET", "/api/v1/frames/telemetry.backlog", 422, "schema"),
        ("GET", "/api/v1/frames/telemetry.gpu?schema=train/1", 422, "gpu/1"),
    ],
)
async def test_every_error_is_a_problem(here: World, method: str, path: str, status: int, says: str) -> None:
    """An error is `application/problem+json`, has its status inside, and names what was wrong."""
    answer = await here.http.request(method, path)
    problem = is_problem(answer, status)
    assert says in problem["detail"]


async def test_a_fault_of_ours_is_a_problem_without_its_insides(here: World) -> None:
    """A bug answers 500 as a problem, and tells a stranger nothing of the code."""

    async def broken() -> None:
        raise RuntimeError("secret insides")

    here.app.add_api_route("/broken", broken)
    answer = await here.http.get("/broken")
    assert "secret" not in is_problem(answer, 500)["detail"]


async def test_ready_says_what_is_lacking(here: World) -> None:
    """Readiness needs the store; being alive does not."""
    assert (await here.http.get("/readyz")).status_code == 200
    here.incidents.away = True
    assert "incident store" in is_problem(await here.http.get("/readyz"), 503)["detail"]
    assert (await here.http.get("/healthz")).status_code == 200


async def test_who_watches_is_told_apart_from_whether_the_page_can_be_shown(tmp_path: Path) -> None:
    """Without a tick for five seconds the page says so and stays in service; an old tick, and one of a clock that was
    set back, is none."""
    clock = ManualClock()
    async with open_bus(f"file://{tmp_path}", clock) as bus, FanOut(bus, tuple(Topic)) as fan:
        live = Live(fan, IncidentFeed(NoIncidents()), Broadcast(), clock, None)

        def tick(time: float) -> None:
            live.take(Record(Topic.TICKS, 0, 1, time, b""))

        assert live.watching() is None
        tick(clock.now() - 60.0)
        assert live.watching() is None
        clock.advance(5.5)
        assert live.watching() is False
        assert live.health_event(clock.now())["watching"] is False
        tick(clock.now())
        assert live.watching() is True
        clock.step(-3600.0)
        clock.advance(5.5)
        assert live.watching() is False


async def test_readiness_says_that_a_detector_ticks(here: World) -> None:
    """A page without detectors is ready; the tick that comes is seen."""
    assert (await here.http.get("/readyz")).json() == {"status": "ready", "watching": None, "detail": None}
    await here.publish(FrameMaker("ticks"), Topic.TICKS, "tick/1", {"time": [here.clock.now()]})
    assert (await here.http.get("/readyz")).json() == {"status": "ready", "watching": True, "detail": None}


@pytest.mark.parametrize("path", ["/api/v1/incidents", "/api/v1/incidents/i-1"])
async def test_a_store_that_is_away_is_told_and_is_no_fault_of_the_page(here: World, path: str) -> None:
    """What the store raises answers 503 with what to do, without the insides of the error; once it is back, so is the
    answer."""
    here.incidents.put(incident())
    here.incidents.away = True
    answer = await here.http.get(path)
    detail = is_problem(answer, 503)["detail"]
    assert "the incident store cannot be read (ConnectionError)" in detail
    assert "the store is away" not in detail
    assert answer.headers["retry-after"] == "1"
    here.incidents.away = False
    assert (await here.http.get(path)).status_code == 200


async def test_a_store_that_is_away_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A page that asks all the time does not fill the log."""
    clock, incidents = ManualClock(), IncidentList()
    incidents.away = True
    source = GuardedSource(incidents, clock)
    for wait_seconds in (0.0, 1.0, 58.0, 1.0, 1.0):
        clock.advance(wait_seconds)
        with pytest.raises(StoreUnavailable):
            await source.ready()
    assert [record.getMessage() for record in caplog.records] == [
        "the incident store cannot be read: ConnectionError: the store is away"
    ] * 2


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/openapi.json",
        "/api/v1/fleet",
        "/api/v1/jobs",
        "/api/v1/incidents",
        "/api/v1/stream",
        "/api/v1/frames/telemetry.gpu",
        "/api/v1/frames/telemetry.gpu?follow=true",
        "/api/v1/jobs/none",
    ],
)
async def test_head_is_answered_like_get_without_the_body(here: World, path: str) -> None:
    """Status and kind are those of GET; an endless answer ends at once and leaves no reader behind."""
    readers = here.services.fan.readers
    async with here.http.stream("GET", path) as whole:
        status, kind = whole.status_code, whole.headers["content-type"]
    answer = await here.http.head(path)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (status, kind, b"")
    await until(lambda: here.services.fan.readers == readers and here.services.broadcast.clients == 0)


async def test_a_job_whose_name_needs_escaping_is_found(here: World) -> None:
    """Slashes, spaces and umlauts are part of a job's name."""
    name = "team a/run é#1"
    columns = {"job": [name], "attempt": ["a"], "rank": [0], "step": [1], "loss": [1.0]}
    await here.publish(FrameMaker("sdk"), Topic.TRAIN, "train/1", columns)
    answer = await here.http.get("/api/v1/jobs/team%20a/run%20%C3%A9%231")
    assert strict_json(answer.text)["job"] == name


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/api/v1/fleet", "/api/v1/fleet", 200),
        ("/api/v1/fleet?limit=0", "/api/v1/fleet", 422),
        ("/api/v1/jobs", "/api/v1/jobs", 200),
        ("/api/v1/jobs/run", "/api/v1/jobs/{job}", 200),
        ("/api/v1/jobs/none", "/api/v1/jobs/{job}", 404),
        ("/api/v1/incidents", "/api/v1/incidents", 200),
        ("/api/v1/incidents/i-1", "/api/v1/incidents/{incident_id}", 200),
        ("/api/v1/incidents/none", "/api/v1/incidents/{incident_id}", 404),
        ("/api/v1/frames/telemetry.gpu", "/api/v1/frames/{topic}", 200),
        ("/api/v1/frames/nonsense", "/api/v1/frames/{topic}", 422),
        ("/metrics", "/metrics", 200),
        ("/healthz", "/healthz", 200),
        ("/readyz", "/readyz", 200),
    ],
)
async def test_an_answer_is_what_the_description_says(here: World, path: str, route: str, status: int) -> None:
    """Status, media type and the keys of each answer are in the OpenAPI document."""
    await here.gpus(FrameMaker("node-1"), power_watts=[None, NAN])
    await here.steps(FrameMaker("sdk"), loss=[None, NAN])
    here.incidents.put(incident())
    described = (await here.http.get("/api/openapi.json")).json()["paths"][route]["get"]["responses"]
    answer = await here.http.get(path)
    assert answer.status_code == status
    assert {"401", "421", str(status)} <= set(described)
    content = described[str(status)]["content"]
    assert set(content) == {answer.headers["content-type"]}
    if "json" in answer.headers["content-type"]:
        assert conforms(strict_json(answer.text), content[answer.headers["content-type"]]["schema"])


KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a JSON value is as a schema (of the words that ours use) says."""
    kinds = schema.get("type", list(KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return (
        any(isinstance(value, KINDS[kind]) and (kind == "boolean") >= isinstance(value, bool) for kind in kinds)
        and all(conforms(value, part) for part in schema.get("allOf", []))
        and ("anyOf" not in schema or any(conforms(value, part) for part in schema["anyOf"]))
        and value in schema.get("enum", [schema.get("const", value)])
        and (not isinstance(value, int | float) or value >= schema.get("minimum", value))
        and (not isinstance(value, dict) or set(schema.get("required", [])) <= set(value))
        and (
            not isinstance(value, dict)
            or all(conforms(value[name], part) for name, part in schema.get("properties", {}).items() if name in value)
        )
        and (not isinstance(value, list) or all(conforms(item, schema.get("items", {})) for item in value))
    )


async def test_the_api_describes_itself(here: World) -> None:
    """Every route of the contract is in the description, and nothing is cached that moves."""
    answer = await here.http.get("/api/openapi.json")
    assert {
        "/api/v1/fleet",
        "/api/v1/jobs",
        "/api/v1/jobs/{job}",
        "/api/v1/incidents",
        "/api/v1/incidents/{incident_id}",
        "/api/v1/stream",
        "/api/v1/frames/{topic}",
        "/metrics",
        "/healthz",
        "/readyz",
    } == set(answer.json()["paths"])
    assert answer.headers["cache-control"] == "no-store"


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem in an answer, which must be one."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = strict_json(answer.text)
    assert problem["status"] == status
    assert problem["title"]
    return problem
