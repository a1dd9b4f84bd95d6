"""Prometheus remote write: what dcgm-exporter prints becomes rows of GPUs, and nothing hostile becomes anything."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import BusUnavailable, Topic
from telemetry_bus.gateway.ingest_errors import BodyTooLarge, UnreadableBody
from telemetry_bus.gateway.metric_mapping import Unmapped
from telemetry_bus.gateway.metric_rows import STALE_BITS, place
from telemetry_bus.gateway.remote_write import (
    DECODED_BYTES_MAX,
    SAMPLES_MAX,
    read_request_2,
    read_write_request,
    unsnap,
)
from telemetry_bus.gateway.series_cache import SeriesCache
from tests.telemetry_bus.gateway.ingest_scene import (
    GATEWAY_TOKEN,
    JOB_TOKENS,
    NOW,
    dcgm,
    part,
    request_2,
    sample,
    scene,
    snap,
    varint,
    write_request,
)

MILLIS = int(NOW * 1_000)
STALE_MARKER = struct.pack("<Q", STALE_BITS)
PRW2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"

versions = pytest.mark.parametrize(
    ("encode", "headers"),
    [
        pytest.param(write_request, {}, id="1.0"),
        pytest.param(request_2, {"content_type": PRW2, "x_prometheus_remote_write_version": "2.0.0"}, id="2.0"),
    ],
)


def only(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says, without what is absent."""
    return {name: value for name, value in row.items() if value is not None}


@versions
async def test_the_numbers_of_a_gpu_at_one_instant_are_one_row(
    encode: Callable[[Any], bytes], headers: dict[str, str]
) -> None:
    """Names become columns, units are converted once, and the answer counts what was written."""
    body = encode(
        [
            (dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(61.0, MILLIS - 1_000), sample(62.0, MILLIS)]),
            (dcgm("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), [sample(1_500_250.0, MILLIS)]),
            (dcgm("DCGM_FI_DEV_GPU_UTIL"), [sample(0.0, MILLIS)]),
            (dcgm("DCGM_FI_DEV_PCIE_REPLAY_COUNTER"), [sample(12.0, MILLIS)]),
            (dcgm("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), [sample(0.25, MILLIS)]),
        ]
    )
    async with scene(region="north") as where:
        response = await where.remote_write(snap(body), **headers)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["x-prometheus-remote-write-samples-written"] == "6"
        assert response.headers["nantucket-samples-unmapped"] == "0"
        earlier, later = where.shelf.rows(Topic.GPU)
    assert (earlier["time"], earlier["temperature_celsius"], earlier["energy_joules"]) == (NOW - 1.0, 61.0, None)
    assert only(later) == {
        "time": NOW,
        "region": "north",
        "node": "node-1",
        "gpu": 0,
        "uuid": "GPU-node-1-0",
        "simulated": False,
        "temperature_celsius": 62.0,
        "energy_joules": 1_500.25,
        "gpu_utilization_percent": 0.0,
        "pcie_replay_count": 12,
        "tensor_active_ratio": 0.25,
    }
    ((topic, frame, key),) = where.shelf.frames
    assert (topic, key) == (Topic.GPU, "node-1")
    assert [(run.source, run.seq, run.rows) for run in frame.manifest] == [("node-1/gpu", 0, 2)]


async def test_every_node_is_a_source_and_a_partition_key_of_its_own() -> None:
    """Nodes of one request come as a frame each, under the node's key, numbered each from 0."""
    body = write_request(
        (dcgm("DCGM_FI_DEV_GPU_TEMP", gpu, node), [sample(60.0 + gpu, MILLIS)]) for gpu in (1, 0) for node in "ba"
    )
    async with scene() as where:
        for _ in range(2):
            await where.remote_write(snap(body))
    told = [(key, frame.manifest[0].source, frame.manifest[0].seq) for _, frame, key in where.shelf.frames]
    assert told == [("a", "a/gpu", 0), ("b", "b/gpu", 0), ("a", "a/gpu", 1), ("b", "b/gpu", 1)]
    assert [(row["node"], row["gpu"]) for row in where.shelf.rows(Topic.GPU)[:4]] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]


async def test_stale_and_blank_are_absent_and_another_nan_is_one() -> None:
    """Prometheus's marker and DCGM's "no value" are no numbers; a NaN that somebody computed is."""
    blank = 9_223_372_036_854_775_794.0
    async with scene() as where:
        response = await where.remote_write(
            snap(
                write_request(
                    [
                        (dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(STALE_MARKER, MILLIS)]),
                        (dcgm("DCGM_FI_DEV_MEMORY_TEMP"), [sample(blank, MILLIS)]),
                        (dcgm("DCGM_FI_DEV_FB_USED"), [sample(2_147_483_632.0, MILLIS)]),
                        (dcgm("DCGM_FI_PROF_SM_ACTIVE"), [sample(140_737_488_355_330.0, MILLIS)]),
                        (dcgm("DCGM_FI_DEV_POWER_USAGE"), [sample(math.nan, MILLIS)]),
                        (dcgm("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"), [sample(0.0, MILLIS)]),
                        (dcgm("DCGM_FI_DEV_GPU_TEMP", 1), [sample(STALE_MARKER, MILLIS)]),
                    ]
                )
            )
        )
        assert response.headers["nantucket-samples-unmapped"] == "0"
        assert (where.ingest.counters.samples, where.ingest.counters.absent) == (2, 5)
        (row,) = where.shelf.rows(Topic.GPU)
    assert row.keys() - only(row).keys() >= {"temperature_celsius", "memory_temperature_celsius", "memory_used_mib"}
    assert row["sm_active_ratio"] is None
    assert math.isnan(row["power_watts"])
    assert row["ecc_uncorrected_volatile_count"] == 0


async def test_what_has_no_place_is_told_and_no_error() -> None:
    """Other series are counted by reason, and the rest of the request is taken."""
    body = write_request(
        [
            ({"__name__": "up", "job": "dcgm", "instance": "a:1"}, [sample(1.0, MILLIS)] * 2),
            (dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(61.0, MILLIS), sample(61.0, -5), sample(1e300, MILLIS + 1)]),
            (dcgm("DCGM_FI_DEV_GPU_TEMP", nvlink="3"), [sample(61.0, MILLIS)]),
            ({"__name__": "DCGM_FI_DEV_GPU_TEMP", "gpu": "0"}, [sample(61.0, MILLIS)]),
            (dcgm("DCGM_FI_DEV_GPU_TEMP", node="a/b"), [sample(61.0, MILLIS)]),
            (dcgm("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"), [sample(0.5, MILLIS), sample(math.nan, MILLIS)]),
        ]
    )
    async with scene() as where:
        response = await where.remote_write(snap(body))
        assert response.status_code == 204
        assert response.headers["nantucket-samples-unmapped"] == (
            "9, bad_label=1, bad_time=1, bad_value=3, no_gpu=1, no_node=1, unknown_name=2"
        )
        assert response.headers["x-prometheus-remote-write-samples-written"] == "1"
        assert [row["temperature_celsius"] for row in where.shelf.rows(Topic.GPU)] == [61.0]
        assert where.ingest.counters.unmapped[Unmapped.UNKNOWN_NAME] == 2


async def test_a_series_that_names_its_job_and_step_is_a_metric_row() -> None:
    """Labels nantucket_job and nantucket_step, or job and step, make a row of metric/1, NaN included."""
    long_way = {"nantucket_job": "gpt", "nantucket_step": "-7", "nantucket_attempt": "a1", "nantucket_rank": "5"}
    body = write_request(
        [
            ({"__name__": "reward", **long_way, "job": "scrape"}, [sample(math.nan, MILLIS)]),
            (
                {"__name__": "kl", "job": "scrape", "exported_job": "gpt", "step": "9", "layer": "h.0"},
                [sample(0.0, MILLIS)],
            ),
            ({"__name__": "kl", "job": "gpt", "step": "nine"}, [sample(0.0, MILLIS)]),
        ]
    )
    async with scene() as where:
        response = await where.remote_write(snap(body))
        assert response.headers["nantucket-samples-unmapped"] == "1, bad_label=1"
        first, second = where.shelf.rows(Topic.METRICS)
    assert math.isnan(second.pop("value"))
    assert only(first) == {
        "time": NOW, "job": "gpt", "attempt": "0", "rank": 0, "step": 9, "name": "kl", "layer": "h.0", "value": 0.0,
    }  # fmt: skip
    assert only(second) == {"time": NOW, "job": "gpt", "attempt": "a1", "rank": 5, "step": -7, "name": "reward"}
    assert {key for _, _, key in where.shelf.frames} == {"gpt"}


async def test_the_total_memory_is_the_sum_of_its_parts() -> None:
    """The exporter's default list has no total: it is made where all three parts are there, and only there."""
    parts = [("DCGM_FI_DEV_FB_USED", 1_000.0), ("DCGM_FI_DEV_FB_FREE", 79_000.0), ("DCGM_FI_DEV_FB_RESERVED", 559.0)]
    series = [(dcgm(name, gpu), [sample(value, MILLIS)]) for gpu in (0, 1) for name, value in parts]
    async with scene() as where:
        await where.remote_write(snap(write_request(series[:-1])))
        whole, broken = where.shelf.rows(Topic.GPU)
    assert (whole["memory_used_mib"], whole["memory_total_mib"]) == (1_000.0, 80_559.0)
    assert (broken["memory_used_mib"], broken["memory_total_mib"]) == (1_000.0, None)


async def test_a_scrape_in_two_requests_ends_as_one_whole_row() -> None:
    """Where a sender cuts a GPU's numbers in two, the later row says all of them; another instant begins anew."""

    def body(*told: tuple[str, float, int]) -> bytes:
        return snap(write_request((dcgm(name), [sample(value, at)]) for name, value, at in told))

    temperature, power, used = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED"
    async with scene() as where:
        await where.remote_write(body((temperature, 61.0, MILLIS), (power, 300.0, MILLIS)))
        await where.remote_write(body((power, 310.0, MILLIS), (used, 0.0, MILLIS), (used, 5.0, MILLIS + 1_000)))
        await where.remote_write(body((temperature, 62.0, MILLIS + 1_000)))
        await where.remote_write(body((used, 9.0, MILLIS)))
        rows = where.shelf.rows(Topic.GPU)
    told = [(row["time"], row["temperature_celsius"], row["power_watts"], row["memory_used_mib"]) for row in rows]
    assert told == [
        (NOW, 61.0, 300.0, None),
        (NOW, 61.0, 310.0, 0.0),
        (NOW + 1.0, None, None, 5.0),
        (NOW + 1.0, 62.0, None, 5.0),
        (NOW, None, None, 9.0),
    ]


async def test_instances_of_one_gpu_are_rows_of_their_own() -> None:
    """MIG: the GPU's own row and its instances' differ by the instance."""
    name = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
    series = [(dcgm(name), [sample(0.5, MILLIS)]), (dcgm(name, GPU_I_ID="1"), [sample(0.1, MILLIS)])]
    async with scene() as where:
        await where.remote_write(snap(write_request(series)))
        rows = where.shelf.rows(Topic.GPU)
    assert [(row["instance"], round(row["graphics_active_ratio"], 3)) for row in rows] == [(None, 0.5), ("1", 0.1)]


async def test_what_prometheus_kept_while_it_was_cut_off_goes_to_the_backlog() -> None:
    """Samples that are older than a reader takes live fill curves and page nobody."""
    body = write_request([(dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(50.0, MILLIS - 7_200_000), sample(61.0, MILLIS)])])
    async with scene() as where:
        await where.remote_write(snap(body))
        assert [row["temperature_celsius"] for row in where.shelf.rows(Topic.BACKLOG)] == [50.0]
        assert [row["temperature_celsius"] for row in where.shelf.rows(Topic.GPU)] == [61.0]


async def test_a_gateways_token_writes_everything_and_a_jobs_token_that_job() -> None:
    """401 without a token, 403 with another; a job's own token, named in a header, writes rows of that job only."""
    labels = {"__name__": "kl", "step": "9"}
    body = snap(
        write_request(
            [
                (dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(61.0, MILLIS)]),
                ({**labels, "job": "gpt"}, [sample(1.0, MILLIS)]),
                ({**labels, "job": "other"}, [sample(1.0, MILLIS)]),
            ]
        )
    )
    async with scene() as where:
        response = await where.remote_write(body, token=None)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        for token, headers in (("wrong", {}), (JOB_TOKENS["gpt"], {}), (GATEWAY_TOKEN, {"nantucket_job": "gpt"})):
            response = await where.remote_write(body, token=token, **headers)
            assert response.status_code == 403
            assert token not in response.text
        response = await where.remote_write(body, token=JOB_TOKENS["gpt"], nantucket_job="gpt")
        assert response.headers["nantucket-samples-unmapped"] == "2, other_job=2"
        assert [row["job"] for row in where.shelf.rows(Topic.METRICS)] == ["gpt"]
        assert where.shelf.rows(Topic.GPU) == []


async def test_a_bus_that_is_away_is_a_503_which_prometheus_sends_again() -> None:
    """Of a request of which one part failed nothing counts as written."""
    body = snap(write_request((dcgm("DCGM_FI_DEV_GPU_TEMP", node=node), [sample(1.0, MILLIS)]) for node in "ab"))
    async with scene() as where:
        where.shelf.away = BusUnavailable("file:///x", "append", None)
        response = await where.remote_write(body)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        where.shelf.away = None
        assert (await where.remote_write(body)).status_code == 204
        for record in where.shelf.written:
            where.shelf.intake.take(record)
        assert where.shelf.intake.ledger.outstanding == 0


GOOD = write_request([(dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(61.0, MILLIS)])])


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        pytest.param(b"", 400, {}, id="empty"),
        pytest.param(snap(GOOD)[:-5], 400, {}, id="a-block-cut-short"),
        pytest.param(snap(GOOD[:-5]), 400, {}, id="a-message-cut-short"),
        pytest.param(b"\xff" * 64, 400, {}, id="noise"),
        pytest.param(varint(1 << 31) + b"\x00", 413, {}, id="a-block-that-says-two-gigabytes"),
        pytest.param(snap(bytes(DECODED_BYTES_MAX + 1)), 413, {}, id="a-bomb"),
        pytest.param(varint(1_000) + b"\x00a", 400, {}, id="a-block-that-says-more-than-it-has"),
        pytest.param(GOOD, 415, {"content_encoding": "identity"}, id="no-snappy"),
        pytest.param(snap(GOOD), 415, {"content_type": "application/json"}, id="another-type"),
        pytest.param(
            snap(GOOD), 415, {"content_type": "application/x-protobuf;proto=some.Message"}, id="another-message"
        ),
        pytest.param(snap(part(1, part(1, part(1, b"\xff")))), 400, {}, id="a-name-that-is-not-utf-8"),
        pytest.param(snap(part(5, part(1, b"\x05"))), 400, {"content_type": PRW2}, id="a-symbol-that-is-not-there"),
        pytest.param(snap(part(4, b"") + part(5, part(1, b"\x00"))), 400, {"content_type": PRW2}, id="half-a-label"),
    ],
)
async def test_a_hostile_body_is_refused_in_words(body: bytes, status: int, headers: dict[str, str]) -> None:
    """Whatever is wrong with a body, the answer says what was expected, and the next request is taken."""
    async with scene() as where:
        response = await where.remote_write(body, **headers)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        assert "expected" in response.json()["detail"]
        assert where.ingest.room.used == 0
        assert (await where.remote_write(snap(GOOD))).status_code == 204


async def test_too_many_samples_are_a_413() -> None:
    """A request's samples have a bound, whatever its bytes."""
    body = write_request([(dcgm("DCGM_FI_DEV_GPU_TEMP"), [sample(61.0, MILLIS)] * (SAMPLES_MAX + 1))])
    async with scene() as where:
        assert (await where.remote_write(snap(body))).status_code == 413


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_samples_or_are_refused(data: bytes, second: bool) -> None:
    """No bytes make the readers raise anything but a refusal, and what they read can be placed."""
    refused = ""
    try:
        samples = (read_request_2 if second else read_write_request)(data, SeriesCache())
        place(samples, NOW, None)
        unsnap(data)
    except (UnreadableBody, BodyTooLarge) as refusal:
        refused = str(refusal)
    assert "expected" in refused or not refused


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "other"]),
            st.integers(0, 2),
            st.lists(st.tuples(st.floats(width=64), st.integers(-(2**63), 2**63 - 1)), max_size=3),
        ),
        max_size=8,
    )
)
def test_no_sample_is_lost_between_written_absent_and_unmapped(series: list[Any]) -> None:
    """Every sample is in exactly one of the three counts, and every piece can be sent."""
    body = write_request((dcgm(name, gpu), [sample(v, t) for v, t in samples]) for name, gpu, samples in series)
    placed = place(read_write_request(body, SeriesCache()), NOW, None)
    sent = sum(len(samples) for _, _, samples in series)
    assert placed.accepted + placed.absent + sum(placed.unmapped.values()) == sent
    for piece in placed.pieces:
        piece.batch.validate(full=True)
        assert sum(rows for _, rows, _ in piece.runs) == piece.batch.num_rows
