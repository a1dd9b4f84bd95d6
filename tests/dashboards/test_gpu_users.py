"""Who uses which GPU, joined where somebody asks: from events on the real bus to the API's JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.agent import NodeAgent
from collectors.gpu_users import GpuUsers, TrainingPeer, UsersOfGpus
from collectors.gpu_users.table import REFRESH_SECONDS
from dashboards.gpu_users import (
    FORGET_SECONDS,
    JOB_GPUS_MAX,
    PLACE_BYTES,
    PLACES_MAX,
    USERS_BYTES_MAX,
    USERS_SHOWN_MAX,
    GpuUsersState,
)
from telemetry_bus.frames import Frame, FrameMaker, encode
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import EventKind
from telemetry_bus.topics import Topic
from tests.dashboards.world import strict_json, world
from tests.fakes.processes import running

NOW = 1_700_000_000.0
GPU = "GPU-6f1a2b3c-0000-1111-2222-333344445555"
MIG = "MIG-0c9b8a7d-0000-1111-2222-333344445555"


def frame(*told: dict[str, Any], time: float = NOW, detail: str | None = None) -> Frame:
    """One frame of events: ``told`` gives node, gpu, uuid, instance, users of each."""
    rows = len(told)
    details = [dumps({"instance": one.get("instance"), "users": one["users"]}) for one in told]
    columns = {
        "time": [time] * rows,
        "kind": [EventKind.GPU_USERS.value] * rows,
        "node": [one.get("node", "n1") for one in told],
        "gpu": [one.get("gpu", 0) for one in told],
        "uuid": [one.get("uuid", GPU) for one in told],
        "detail": details if detail is None else [detail] * rows,
        "simulated": [False] * rows,
    }
    return FrameMaker("n1/gpu-events").make("event/1", columns, time)


def jobs(state: GpuUsersState, gpu: int = 0, uuid: str | None = GPU, node: str = "n1") -> list[Any] | None:
    """The jobs on a GPU."""
    users = state.of_node(node).of_gpu(gpu, uuid)["users"]
    return None if users is None else [user["job"] for user in users]


def test_nothing_told_is_not_nobody() -> None:
    """A GPU whose users no collector tells has none that are known; an idle one has an empty list."""
    state = GpuUsersState()
    assert jobs(state) is None
    state.observe(frame({"users": []}))
    assert jobs(state) == []


def test_a_gpu_has_its_own_users_and_those_of_its_instances() -> None:
    """A MIG instance has a UUID of its own; the number of its GPU joins it."""
    state = GpuUsersState()
    state.observe(
        frame(
            {"users": [{"origin": "sdk", "job": "a"}]},
            {"uuid": MIG, "instance": "9/0", "users": [{"job": "b", "rank": 3}]},
            {"uuid": "GPU-other", "gpu": 1, "users": [{"job": "c"}]},
            {"uuid": GPU, "node": "n2", "users": [{"job": "d"}]},
        )
    )
    told = state.of_node("n1").of_gpu(0, GPU)
    assert [(user["instance"], user["job"], user["rank"]) for user in told["users"]] == [
        (None, "a", None),
        ("9/0", "b", 3),
    ]
    assert told["users_left_out"] == 0


def test_the_newest_word_stands() -> None:
    """Events may come late and out of order."""
    state = GpuUsersState()
    state.observe(frame({"users": [{"job": "new"}]}, time=NOW))
    state.observe(frame({"users": [{"job": "old"}]}, time=NOW - 5.0))
    assert jobs(state) == ["new"]


def test_a_job_lists_its_gpus() -> None:
    """With the rank and the process on each; another job whose name holds the same letters is not it."""
    state = GpuUsersState()
    state.observe(
        frame(
            {"users": [{"job": 'a"b', "rank": 0, "pid": 7}, {"job": "other"}]},
            {"uuid": "GPU-b", "gpu": 1, "users": [{"job": 'a"b', "rank": 1}]},
            {"uuid": "GPU-c", "gpu": 2, "users": [{"job": "x", "pod": '"job":"a\\"b"'}]},
        )
    )
    rows, count = state.of_job('a"b')
    assert [(row["node"], row["gpu"], row["uuid"], row["rank"], row["pid"]) for row in rows] == [
        ("n1", 0, GPU, 0, 7),
        ("n1", 1, "GPU-b", 1, None),
    ]
    assert count == 2


def test_what_is_told_no_more_is_forgotten_and_what_is_told_again_is_not() -> None:
    """A collector that has ended does not use its GPUs for ever; neither does one whose clock was wrong."""
    state = GpuUsersState()
    state.observe(frame({"node": "old", "users": []}, {"node": "odd", "users": []}, time=NOW))
    state.observe(frame({"node": "live", "users": []}, time=NOW + FORGET_SECONDS))
    state.forget(NOW + FORGET_SECONDS + 1.0)
    assert [jobs(state, node=node) for node in ("old", "odd", "live")] == [None, None, []]
    assert FORGET_SECONDS > 3 * REFRESH_SECONDS
    state.forget(NOW - 1.0)
    assert state.bytes == 0


@pytest.mark.parametrize(
    "detail",
    [
        pytest.param("", id="empty"),
        pytest.param("[" * 30_000, id="deep"),
        pytest.param("7", id="a number"),
        pytest.param('{"users":null}', id="no list"),
        pytest.param('{"users":{"job":"x"}}', id="an object"),
        pytest.param('{"instance":7,"users":[]}', id="an instance that is none"),
    ],
)
def test_an_event_that_says_nothing_is_counted_and_changes_nothing(detail: str) -> None:
    """Whoever may write to the bus may write anything."""
    state = GpuUsersState()
    state.observe(frame({"users": [{"job": "a"}]}))
    state.observe(frame({"users": []}, detail=detail, time=NOW + 1.0))
    assert jobs(state) == ["a"]
    assert state.events_refused == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["job", "rank", "x"]), inner),
    )
)
def test_whatever_stands_for_users_is_shown_as_users_or_not_at_all(users: Any) -> None:
    """A text where a number belongs, a list in a name: such a value is absent."""
    state = GpuUsersState()
    state.observe(frame({"users": users}))
    shown = state.of_node("n1").of_gpu(0, GPU)["users"] or []
    assert all(isinstance(user["job"], str | None) for user in shown)
    assert all(type(user["rank"]) in {int, type(None)} for user in shown)
    assert all("x" not in user for user in shown)


def test_a_list_without_end_is_bounded_and_counted() -> None:
    """A thousand users of one GPU cost no more than its limit, and their number is told."""
    state = GpuUsersState()
    state.observe(frame({"users": [{"job": f"job-{at}", "rank": at} for at in range(1_500)]}))
    assert state.bytes <= USERS_BYTES_MAX + PLACE_BYTES
    told = state.of_node("n1").of_gpu(0, GPU)
    assert len(told["users"]) == USERS_SHOWN_MAX
    assert told["users_left_out"] == 1_500 - USERS_SHOWN_MAX


def test_a_node_with_endless_gpus_is_bounded() -> None:
    """So is one job on all of them: the first are listed, all are counted."""
    state = GpuUsersState()
    told = [{"uuid": f"GPU-{at}", "gpu": at, "users": [{"job": "a"}] * 5} for at in range(PLACES_MAX + 7)]
    state.observe(frame(*told))
    assert state.places_over_limit == 7
    rows, count = state.of_job("a")
    assert (len(rows), count) == (JOB_GPUS_MAX, 5 * PLACES_MAX)


def test_over_its_limit_the_longest_silent_node_goes_first() -> None:
    """Memory is bounded whatever the fleet tells, and what was freed is counted back."""
    state = GpuUsersState(bytes_max=3 * (PLACE_BYTES + 2))
    for node in ("a", "b", "c", "a", "d"):
        state.observe(frame({"node": node, "users": []}, time=NOW))
    assert [jobs(state, node=node) for node in "abcd"] == [[], None, [], []]
    assert state.bytes == 3 * (PLACE_BYTES + 2)


async def test_from_a_running_process_to_the_api(tmp_path: Path) -> None:
    """The whole way: a real process, a collector's agent, the real bus, the server's JSON, for a GPU and for a job."""
    users = GpuUsers("node-1")
    maker, train = FrameMaker("node-1/gpu"), FrameMaker("run/a1/0/train")
    async with world(tmp_path) as made:
        with running({"SLURM_JOB_ID": "42", "RANK": "3", "AWS_SECRET_ACCESS_KEY": "hunter2"}) as pid:
            users.saw_processes(GPU, None, [pid], made.clock.now(), gpu=0)
            users.saw_processes(MIG, "9/0", [], made.clock.now(), gpu=1)
            users.saw_training("connection", TrainingPeer("run", "a1", 3, uuid=MIG))
            source = UsersOfGpus("node-1", users, socket=tmp_path / "none").build(made.clock)

            async def publish(topic: Topic, one: Frame) -> None:
                await made.publish_payload(topic, encode(one))

            async with NodeAgent([source], publish, made.clock, node="node-1"):
                while made.services.live.frames[Topic.EVENTS] == 0:
                    await asyncio.sleep(0.005)
        await made.gpus(maker, uuid=[GPU, "GPU-b", "GPU-c"], power_watts=[1.0, 2.0, 3.0])
        await made.steps(train, loss=[1.0])
        answer = await made.http.get("/api/v1/fleet")
        first, second, third = strict_json(answer.text)["rows"]
        job = strict_json((await made.http.get("/api/v1/jobs/run")).text)
    (user,) = first["users"]
    assert {"origin": "environment", "slurm_job_id": "42", "rank": 3, "pid": pid, "job": None}.items() <= user.items()
    assert "hunter2" not in answer.text
    assert [(user["job"], user["instance"]) for user in second["users"]] == [("run", "9/0")]
    assert third["users"] is None
    assert job["gpus_count"] == 1
    (gpu,) = job["gpus"]
    assert {"node": "node-1", "gpu": 1, "uuid": MIG, "instance": "9/0", "rank": 3}.items() <= gpu.items()
    assert json.dumps(job)
