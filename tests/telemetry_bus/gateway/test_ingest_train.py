"""Training rows as JSON: the SDK's bounds, the job's token, and durable or nothing."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import BusUnavailable, Topic
from telemetry_bus.errors import OutletFull
from telemetry_bus.gateway.ingest_errors import BadRows, BodyTooLarge, UnreadableBody
from telemetry_bus.gateway.train_json import BODY_BYTES_MAX, METRICS_MAX, ROW_METRICS_MAX, ROWS_MAX, read_rows
from telemetry_bus.schemas import SCHEMAS
from tests.telemetry_bus.gateway.ingest_scene import JOB_TOKENS, NOW, Scene, scene

ROW: dict[str, Any] = {"job": "gpt", "attempt": "1", "rank": 3, "step": 7, "time": NOW - 1.0, "loss": 2.5}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["NaN", "Infinity", "gpt"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


async def problem_of(where: Scene, body: Any, status: int, **headers: str) -> dict[str, Any]:
    """What is said of a body that is refused with this status."""
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    response = await where.train(content, **headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    return found


async def test_a_row_is_durable_when_it_is_accepted() -> None:
    """One object is one row of train/1, with everything that was said and nothing else."""
    async with scene(region="north") as where:
        response = await where.train(json.dumps(ROW))
        assert (response.status_code, response.json()) == (200, {"accepted": 1, "durable": True})
        (row,) = where.shelf.rows(Topic.TRAIN)
    assert {name: value for name, value in row.items() if value is not None} == {**ROW, "region": "north"}
    ((_, frame, key),) = where.shelf.frames
    assert key == "gpt"
    assert [(run.source, run.seq, run.rows) for run in frame.manifest] == [("gpt/1/3/train", 0, 1)]


async def test_a_list_or_lines_are_many_rows_of_many_ranks() -> None:
    """A list and NDJSON say the same, and each rank is a source that is numbered from 0."""
    rows = [{**ROW, "rank": rank, "step": step} for step in (1, 2) for rank in (1, 0)]
    async with scene() as where:
        await where.train(json.dumps(rows))
        lines = "\n".join(json.dumps(row) for row in rows) + "\n"
        response = await where.train(lines, content_type="application/x-ndjson")
        assert response.json() == {"accepted": 4, "durable": True}
    runs = [[(run.source, run.seq, run.rows) for run in frame.manifest] for _, frame, _ in where.shelf.frames]
    assert runs == [[("gpt/1/0/train", at, 2), ("gpt/1/1/train", at, 2)] for at in (0, 1)]
    assert [row["step"] for row in where.shelf.rows(Topic.TRAIN)[:4]] == [1, 2, 1, 2]


async def test_absent_zero_and_nan_are_three_things() -> None:
    """null and a missing key are absent, 0 is zero, and the three strings are what they say."""
    rows = [{**ROW, "loss": value} for value in (None, 0, "NaN", "Infinity", "-Infinity")]
    rows.append({name: value for name, value in ROW.items() if name != "loss"})
    async with scene() as where:
        assert (await where.train(json.dumps(rows))).status_code == 200
        found = [row["loss"] for row in where.shelf.rows(Topic.TRAIN)]
    assert found[0] is None
    assert found[5] is None
    assert found[1] == 0.0
    assert math.isnan(found[2])
    assert found[3:5] == [math.inf, -math.inf]


async def test_metrics_of_a_row_become_rows_of_their_own() -> None:
    """A row that has nothing but metrics is no training step; one that has more is both."""
    alone = {"job": "gpt", "attempt": "1", "step": 8, "metrics": {"reward": "NaN", "kl": 0, "gone": None}}
    async with scene() as where:
        response = await where.train(json.dumps([{**ROW, "metrics": {"entropy": 1.5}}, alone]))
        assert response.json() == {"accepted": 2, "durable": True}
        assert [row["step"] for row in where.shelf.rows(Topic.TRAIN)] == [7]
        metrics = where.shelf.rows(Topic.METRICS)
    assert [(row["step"], row["rank"], row["name"]) for row in metrics] == [
        (8, 0, "reward"),
        (8, 0, "kl"),
        (7, 3, "entropy"),
    ]
    assert math.isnan(metrics[0]["value"])
    assert [row["value"] for row in metrics[1:]] == [0.0, 1.5]
    assert metrics[0]["time"] == NOW


async def test_a_row_without_a_time_is_of_now() -> None:
    """A client without a good clock leaves the time to the gateway; a step alone is a row too."""
    async with scene() as where:
        await where.train(json.dumps({"job": "gpt", "attempt": "1", "step": 1}))
        (row,) = where.shelf.rows(Topic.TRAIN)
    assert (row["time"], row["rank"], row["loss"]) == (NOW, 0, None)


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        pytest.param({"loss": True}, "loss", "found True", id="true-is-no-number"),
        pytest.param({"rank": True}, "rank", "found True", id="true-is-no-rank"),
        pytest.param({"loss": "nan"}, "loss", '"NaN"', id="nan-in-other-words"),
        pytest.param({"loss": 10**400}, "loss", "whole number of", id="a-huge-integer"),
        pytest.param({"step": 1.5}, "step", "whole number", id="half-a-step"),
        pytest.param({"step": 2**63}, "step", "64 bits", id="a-step-beyond-64-bits"),
        pytest.param({"step": None}, "step", "found none", id="no-step"),
        pytest.param({"rank": -1}, "rank", "from 0", id="a-negative-rank"),
        pytest.param({"job": "a/b"}, "job", "letters, digits", id="a-slash-in-a-job"),
        pytest.param({"attempt": ""}, "attempt", "letters, digits", id="an-empty-attempt"),
        pytest.param({"time": 1e12}, "time", "UTC seconds", id="milliseconds"),
        pytest.param({"scope": "world"}, "scope", "global", id="an-unknown-scope"),
        pytest.param({"phase": "x" * 65}, "phase", "1 to 64", id="a-long-text"),
        pytest.param({"skipped": 1}, "skipped", "true or false", id="one-is-not-true"),
        pytest.param({"lose": 1}, "lose", "another name", id="an-unknown-key"),
        pytest.param({"metrics": {"kl": True}}, "metrics.kl", "found True", id="true-as-a-metric"),
        pytest.param({"metrics": {"a\nb": 1}}, "metrics", "control characters", id="a-newline-in-a-name"),
        pytest.param({"metrics": [1]}, "metrics", "an object", id="metrics-in-a-list"),
    ],
)
async def test_what_is_wrong_is_named_by_row_and_field(change: dict[str, Any], field: str, said: str) -> None:
    """One bad cell refuses the request, and the answer says which, what was expected, and what was found."""
    async with scene() as where:
        found = await problem_of(where, [ROW, {**ROW, **change}], 422)
        assert where.shelf.frames == []
    assert [(fault["row"], fault["field"]) for fault in found["errors"]] == [(1, field)]
    assert said in found["errors"][0]["message"]
    assert f"row 1, {field}" in found["detail"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"job": "gpt", ', id="cut-short"),
        pytest.param(b'{"job": "gpt", "attempt": "1", "step": 1, "loss": NaN}', id="a-bare-nan"),
        pytest.param(b"[" * 60_000, id="deep"),
        pytest.param(b"\xff\xfe", id="not-utf-8"),
        pytest.param(b'{"step": ' + b"9" * 5_000 + b"}", id="five-thousand-digits"),
    ],
)
async def test_what_is_not_json_is_told_so(body: bytes) -> None:
    """A body that cannot be read is a 422 with words, whatever it is."""
    async with scene() as where:
        found = await problem_of(where, body, 422)
    assert "expected" in found["detail"]


async def test_limits_are_said_with_their_numbers() -> None:
    """Bytes, rows and metrics have a bound each, and a gzip bomb meets it before it is unpacked."""
    many = {f"m{i}": 1.0 for i in range(ROW_METRICS_MAX)}
    too_many = json.dumps([{**ROW, "metrics": many}] * (METRICS_MAX // ROW_METRICS_MAX + 1)).encode()
    async with scene() as where:

        async def said(body: Any, status: int = 413, **headers: str) -> str:
            found = await problem_of(where, body, status, nantucket_job="gpt", **headers)
            return str(found["detail"])

        assert str(BODY_BYTES_MAX) in await said(b" " * (BODY_BYTES_MAX + 1))
        assert str(ROWS_MAX) in await said([ROW] * (ROWS_MAX + 1))
        assert "unpacked" in await said(gzip.compress(bytes(200 * 1024 * 1024)), content_encoding="gzip")
        assert str(METRICS_MAX) in await said(gzip.compress(too_many), content_encoding="gzip")
        assert "at most 512" in await said({**ROW, "metrics": {**many, "one more": 1}}, 422)


async def test_a_large_body_names_its_job_first() -> None:
    """Who sends more than 64 KiB says whose rows they are in a header, so that the token is checked before them."""
    rows = json.dumps([ROW] * 1_000)
    async with scene() as where:
        found = await problem_of(where, rows, 413)
        assert "Nantucket-Job" in found["detail"]
        assert (await where.train(rows, token="wrong", nantucket_job="gpt")).status_code == 403
        assert (await where.train(rows, nantucket_job="gpt")).json() == {"accepted": 1_000, "durable": True}
        foreign = json.dumps({**ROW, "job": "other"})
        assert (await where.train(foreign, nantucket_job="gpt")).status_code == 403
        without = json.dumps({"attempt": "1", "step": 9, "loss": 1.0})
        assert (await where.train(without, nantucket_job="gpt")).status_code == 200
        assert where.shelf.rows(Topic.TRAIN)[-1]["job"] == "gpt"


async def test_gzip_is_taken_off_and_nothing_else_is() -> None:
    """gzip is read; a broken or another encoding, and another content type, are refused with what is expected."""
    packed = gzip.compress(json.dumps(ROW).encode())
    async with scene() as where:
        assert (await where.train(packed, content_encoding="gzip")).status_code == 200
        for broken in (packed[:-9], packed + b"x", b"no gzip"):
            assert "gzip" in (await problem_of(where, broken, 400, content_encoding="gzip"))["detail"]
        assert (
            "gzip or identity"
            in (await problem_of(where, zlib.compress(b"{}"), 415, content_encoding="deflate"))["detail"]
        )
        assert "application/json" in (await problem_of(where, "job=gpt", 415, content_type="text/plain"))["detail"]


async def test_only_the_jobs_own_token_writes_its_rows() -> None:
    """No token is 401, another's is 403, and rows of two jobs cannot have one token."""
    async with scene() as where:
        response = await where.train(json.dumps(ROW), token=None)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        for body, token in ((ROW, JOB_TOKENS["other"]), ([ROW, {**ROW, "job": "other"}], JOB_TOKENS["gpt"])):
            response = await where.train(json.dumps(body), token=token)
            assert response.status_code == 403
            assert token not in response.text
        response = await where.train(json.dumps(ROW), token=None, authorization="Basic Z3B0Og==")
        assert response.status_code == 403
        assert where.shelf.frames == []


async def test_a_bus_that_is_away_or_full_is_said_with_when_to_come_back() -> None:
    """503 while the bus is away, 429 while the way up is full, both with Retry-After; nothing was accepted."""
    async with scene() as where:
        where.shelf.away = BusUnavailable("file:///x", "append", OSError("disk full"))
        response = await where.train(json.dumps(ROW))
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        where.shelf.away = OutletFull("gateway://up", "256 MiB are under way", 2.4)
        response = await where.train(json.dumps(ROW))
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert response.json()["status"] == 429


async def test_a_request_that_failed_leaves_no_hole() -> None:
    """The number of a frame that was not accepted comes along empty with the next: nothing is missed, nothing lost."""
    async with scene() as where:
        await where.train(json.dumps(ROW))
        where.shelf.away = BusUnavailable("file:///x", "append", None)
        for _ in range(3):
            await where.train(json.dumps(ROW))
        where.shelf.away = None
        await where.train(json.dumps({**ROW, "step": 8}))
    manifests = [[(run.seq, run.rows) for run in frame.manifest] for _, frame, _ in where.shelf.frames]
    assert manifests == [[(0, 1)], [(1, 0), (2, 0), (3, 0), (4, 1)]]
    for record in where.shelf.written:
        where.shelf.intake.take(record)
    assert where.shelf.intake.ledger.outstanding == 0
    assert where.shelf.intake.ledger.duplicate_total == 0


async def test_more_than_the_room_is_asked_to_come_again() -> None:
    """What all requests hold together is bounded; the answer is 429, and the room is given back."""
    async with scene(held_bytes_max=2_000) as where:
        assert where.ingest.room.take(1_950)
        response = await where.train(json.dumps(ROW))
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        where.ingest.room.give_back(1_950)
        assert (await where.train(json.dumps(ROW))).status_code == 200
        assert where.ingest.room.used == 0


async def test_old_rows_go_to_the_backlog() -> None:
    """Rows that a reader would refuse as late are evidence: they go to the backlog and page nobody."""
    async with scene() as where:
        await where.train(json.dumps([{**ROW, "time": NOW - 3_600}, ROW]))
        assert [row["time"] for row in where.shelf.rows(Topic.BACKLOG)] == [NOW - 3_600]
        assert [row["time"] for row in where.shelf.rows(Topic.TRAIN)] == [NOW - 1.0]


async def test_a_clients_clock_that_is_ahead_is_taken_off() -> None:
    """Rows cannot come from the future: a clock that is ahead is seen by its newest row, and no row is refused."""
    async with scene() as where:
        await where.train(json.dumps([{**ROW, "time": NOW + 3_600}, {**ROW, "time": NOW + 3_590}]))
        assert [row["time"] for row in where.shelf.rows(Topic.TRAIN)] == [NOW, NOW - 10.0]


@given(
    JSON | st.lists(st.dictionaries(st.sampled_from(sorted({*SCHEMAS["train/1"].names, "metrics"})), JSON, max_size=6))
)
def test_any_json_is_rows_or_is_refused(body: Any) -> None:
    """No JSON makes the reader raise anything but a refusal, and what it takes a frame can hold."""
    said = "expected"
    try:
        rows = read_rows(json.dumps(body).encode("utf-8", "surrogatepass"), "application/json", NOW)
        for piece in rows.pieces(NOW, None):
            piece.batch.validate(full=True)
    except (BadRows, BodyTooLarge, UnreadableBody) as refusal:
        said = str(refusal)
    assert "expected" in said
