"""GPUs busy and no training rows: who uses them is said."""

from typing import Any

import pytest

from detectors import BusyWithoutRows
from detectors.detector import Detector, ReaderHealth
from detectors.gpu_users import FORGET_SECONDS, NAMES_MAX, NODES_MAX, UsersOfNodes
from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import EventKind

START = 1_700_000_000.0


def told(*users: dict[str, Any], gpu: int = 0, node: str = "n1", time: float = START, detail: str = "") -> Frame:
    """A collector's event about one GPU."""
    columns = {
        "time": [time],
        "kind": [EventKind.GPU_USERS.value],
        "node": [node],
        "gpu": [gpu],
        "uuid": [f"GPU-{gpu}"],
        "detail": [detail or dumps({"instance": None, "users": list(users), "left_out": 0})],
        "simulated": [False],
    }
    return FrameMaker(f"{node}/gpu-events").make("event/1", columns, time)


def busy(detector: Detector, gpus: int = 2) -> Finding:
    """What is found of a node whose GPUs work for two minutes and more, and which sends no training row."""
    found: list[Finding] = []
    for second in range(130):
        now = START + second
        columns = {
            "time": [now] * gpus,
            "node": ["n1"] * gpus,
            "gpu": list(range(gpus)),
            "simulated": [False] * gpus,
            "gpu_utilization_percent": [99.0] * gpus,
        }
        detector.observe(FrameMaker("n1/gpu").make("gpu/1", columns, now))
        found += detector.tick(now, ReaderHealth(watching_since=START))
    (one,) = found
    return one


def test_it_is_said_who_uses_the_gpus() -> None:
    """A person learns whom to ask, with the number of GPUs of each."""
    detector = BusyWithoutRows().build()
    slurm = {"slurm_job_id": "42", "slurm_job_name": "llama", "rank": 0}
    detector.observe(told(slurm, {"pod": "trainer-0", "namespace": "ml"}))
    detector.observe(told(slurm | {"rank": 1}, gpu=1))
    found = busy(detector)
    assert found.title == "2 GPUs busy, no training rows: n1"
    assert "used by Slurm job 42 llama (2), pod ml/trainer-0 (1). Is the SDK in the job" in found.message
    assert found.evidence["users"] == [
        {"name": "Slurm job 42 llama", "gpus": 2},
        {"name": "pod ml/trainer-0", "gpus": 1},
    ]


def test_where_no_collector_knows_nothing_is_made_up() -> None:
    """Without events it says what it said before."""
    found = busy(BusyWithoutRows().build())
    assert "used by" not in found.message
    assert found.evidence["users"] == []


@pytest.mark.parametrize("detail", ["x", "[]", '{"users":7}', "[" * 9_000], ids=["text", "list", "number", "deep"])
def test_an_event_that_says_nothing_stops_nobody(detail: str) -> None:
    """Whoever may write to the bus may write anything."""
    detector = BusyWithoutRows().build()
    detector.observe(told(detail=detail))
    assert busy(detector).evidence["users"] == []


def test_many_users_are_named_in_part() -> None:
    """The message stays a message."""
    detector = BusyWithoutRows().build()
    detector.observe(told(*({"job": f"job-{at}"} for at in range(50))))
    found = busy(detector)
    assert f"job-0 (1), job-1 (1), job-2 (1) and {NAMES_MAX - 3} more" in found.message
    assert len(found.evidence["users"]) == NAMES_MAX


def test_what_was_told_long_ago_is_not_said() -> None:
    """A collector that has stopped telling knows nothing any more; an older word does not replace a newer."""
    users = UsersOfNodes()
    users.observe(told({"job": "a"}, time=START + 10.0))
    users.observe(told({"job": "b"}, time=START))
    assert users.on(["n1"], START + 20.0) == [("a", 1)]
    assert users.on(["n1"], START + 10.0 + FORGET_SECONDS + 1.0) == []
    users.forget("n1")
    users.forget("never seen")
    assert users.on(["n1"], START + 20.0) == []


def test_nodes_are_bounded() -> None:
    """A fleet larger than is planned for pushes the longest silent out."""
    users = UsersOfNodes()
    rows = NODES_MAX + 2
    columns = {
        "time": [START] * rows,
        "kind": [EventKind.GPU_USERS.value] * rows,
        "node": [f"n{at}" for at in range(rows)],
        "uuid": ["GPU-0"] * rows,
        "detail": ['{"users":[{"job":"a"}]}'] * rows,
        "simulated": [False] * rows,
    }
    users.observe(FrameMaker("gateway").make("event/1", columns, START))
    assert users.on(["n0", "n1"], START) == []
    assert users.on(["n2"], START) == [("a", 1)]
