"""The HTTP entries in a whole gateway: what they take goes up merged, and what is away above is said below."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from telemetry_bus import Topic
from telemetry_bus.gateway import GatewayOptions
from telemetry_bus.gateway.http import make_gateway_app
from telemetry_bus.gateway.ingest import Ingest, IngestOptions, check_of, encoded
from telemetry_bus.gateway.ingest_routes import ingest_router
from telemetry_bus.runtime.secret import Secret
from tests.telemetry_bus.gateway.ingest_scene import (
    GATEWAY_TOKEN,
    JOB_TOKENS,
    Scene,
    Shelf,
    dcgm,
    sample,
    snap,
    write_request,
)
from tests.telemetry_bus.gateway.scene import CLOCK, WAIT_SECONDS, FarEnd, a_gateway

TOKEN = Secret(GATEWAY_TOKEN)


@asynccontextmanager
async def whole(far_end: FarEnd) -> AsyncIterator[Scene]:
    """A gateway's application with the entries in it, over `far_end`."""
    async with a_gateway(far_end, GatewayOptions(group="rack-1")) as gateway:
        options = IngestOptions(
            accept=encoded(gateway.publish),
            clock=CLOCK,
            check_job=lambda job, token: JOB_TOKENS.get(job) == token,
            check_gateway=check_of(TOKEN),
        )
        ingest = Ingest(options)
        app = make_gateway_app(gateway, token=TOKEN, routers=[ingest_router(ingest)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            yield Scene(Shelf(), ingest, client)


async def test_what_comes_in_by_http_goes_up_and_is_durable_when_it_is_answered() -> None:
    """Many scrapers at once: the gateway merges their frames, and each node is numbered without a hole."""
    far_end = FarEnd()

    def body(node: str) -> bytes:
        return snap(
            write_request([(dcgm("DCGM_FI_DEV_GPU_TEMP", node=node), [sample(61.0, int(CLOCK.now() * 1_000))])])
        )

    async with whole(far_end) as where:
        for _ in range(2):
            answers = await asyncio.gather(*(where.remote_write(body(f"n{at}")) for at in range(20)))
            assert {answer.status_code for answer in answers} == {204}
        assert len(far_end.runs(Topic.GPU)) == 40
        assert len(far_end.taken) < 40
    assert {(run.source, run.seq) for run in far_end.runs(Topic.GPU)} == {
        (f"n{at}/gpu", seq) for at in range(20) for seq in (0, 1)
    }


async def test_a_bus_that_is_away_above_is_a_503_below() -> None:
    """A row is refused while nobody can write it, and taken when somebody can."""
    far_end = FarEnd()
    row = json.dumps({"job": "gpt", "attempt": "1", "step": 1, "loss": "NaN"})
    async with whole(far_end) as where:
        far_end.lose()
        response = await where.train(row)
        assert response.status_code == 503
        far_end.away = None
        refused = 1
        async with asyncio.timeout(WAIT_SECONDS):
            while (response := await where.train(row)).status_code == 503:
                refused += 1
                await asyncio.sleep(int(response.headers["retry-after"]))
        assert response.json() == {"accepted": 1, "durable": True}
    told = [(run.seq, run.rows) for run in far_end.runs(Topic.TRAIN)]
    assert told == [*((seq, 0) for seq in range(refused)), (refused, 1)]


async def test_the_entries_are_described() -> None:
    """The application's OpenAPI names the entries, what they take and each way in which they answer."""
    async with whole(FarEnd()) as where:
        paths = (await where.client.get("/api/openapi.json")).json()["paths"]
        assert (await where.client.get("/v1/train")).status_code == 405
    assert "application/json" in paths["/v1/train"]["post"]["requestBody"]["content"]
    assert "application/x-protobuf" in paths["/v1/metrics"]["post"]["requestBody"]["content"]
    assert {"401", "403", "413", "422", "429", "503"} <= paths["/v1/train"]["post"]["responses"].keys()
