"""Stalls: silence that is longer than this run's own, found by ticks."""

import json
from typing import Any

import pytest

from detectors import ReaderHealth, Stall
from detectors.stall import StallDetector
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import FindingState
from tests.detectors.rows import START, ended, fed, frame, row, ticks


def running(last: int, ranks: int = 1, behind: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """A second a step; ranks in ``behind`` did not take the last one."""
    return [
        row(step, rank) for step in range(last + 1) for rank in range(ranks) if not (step == last and rank in behind)
    ]


def test_a_job_that_stops_is_found_once_and_resolved_when_a_step_comes() -> None:
    """The finding names the last step, the silence, and the ranks that did not take it."""
    detector = Stall().build()
    fed(detector, running(20, ranks=8, behind=(3, 5)))
    (found,) = ticks(detector, 21, 400)
    assert found.title == "leviathan-7b: no step since step 20, 121 s ago"
    assert (found.onset_step, found.onset_time) == (20, START + 20)
    assert (found.evidence["first_ranks_behind"], found.evidence["ranks_behind"], found.evidence["lowest_step"]) == (
        [3, 5],
        2,
        19,
    )
    (over,) = fed(detector, [row(21, second=400)])
    assert over.state is FindingState.RESOLVED


def test_a_job_that_has_taken_hardly_a_step_is_not_watched_yet() -> None:
    """What is usual for it is not known: compiling the first step may take half an hour."""
    detector = Stall(warm_up_steps=5).build()
    fed(detector, running(3))
    assert ticks(detector, 4, 900) == []


def test_a_slow_run_is_given_its_own_time() -> None:
    """Ten times the mean interval is the limit where that is more than the floor."""
    detector = Stall().build()
    fed(detector, [row(step, second=60 * step) for step in range(20)])
    found = ticks(detector, 60 * 19, 60 * 19 + 700)
    assert [round(item.evidence["silence_seconds"]) for item in found] == [601]


def test_a_pause_that_has_come_twice_is_usual() -> None:
    """A run that evaluates for five minutes every now and then is not paged for the third time."""
    detector = Stall().build()
    second, said = 0.0, []
    for step in range(90):
        second += 300 if step in (30, 50, 70) else 1
        said.extend(ticks(detector, second - 300, second - 1) if step in (30, 50, 70) else [])
        fed(detector, [row(step, second=second)])
    assert [item.onset_step for item in said] == [29, 49]


@pytest.mark.parametrize("how", ["phase", "event"])
def test_a_checkpoint_has_its_own_patience(how: str) -> None:
    """A job that says that it saves is well for half an hour, and no longer."""
    detector = Stall().build()
    rows = running(20)
    if how == "phase":
        rows[-1]["phase"] = "checkpoint"
    fed(detector, rows)
    if how == "event":
        event = {
            "time": START + 20,
            "kind": "checkpoint_begin",
            "job": "leviathan-7b",
            "attempt": "1",
            "simulated": False,
        }
        detector.observe(frame([event], "event/1"))
    assert ticks(detector, 21, 1_800) == []
    assert len(ticks(detector, 1_801, 1_900)) == 1


def test_a_job_that_has_ended_is_not_watched() -> None:
    """Its end is told by an event, and silence afterwards is its right."""
    detector = Stall().build()
    fed(detector, running(20))
    detector.observe(ended(second=21))
    assert ticks(detector, 21, 900) == []


def test_a_new_attempt_ends_the_stall_of_the_one_before() -> None:
    """The restart is the answer to the stall."""
    detector = Stall().build()
    fed(detector, running(20))
    assert len(ticks(detector, 21, 300)) == 1
    (over,) = fed(detector, [{**row(10, second=300), "attempt": "2"}])
    assert (over.state, over.attempt) == (FindingState.RESOLVED, "1")
    assert ticks(detector, 301, 900) == []


def test_a_job_that_has_gone_back_is_alive() -> None:
    """Steps taken for the second time are steps."""
    detector = Stall().build()
    fed(detector, running(200))
    said = []
    for step in range(100, 190):
        said.extend(fed(detector, [row(step, second=step + 105)]))
        said.extend(ticks(detector, step + 105, step + 105))
    assert said == []


def test_silence_while_nobody_watched_proves_nothing() -> None:
    """After a gap in the ticks a job has the whole limit again."""
    detector = Stall().build()
    fed(detector, running(20))
    assert ticks(detector, 500, 600, ReaderHealth(watching_since=START + 500)) == []
    assert len(ticks(detector, 601, 700, ReaderHealth(watching_since=START + 500))) == 1


@pytest.mark.parametrize("step", [-7200, 7200], ids=["back", "forwards"])
def test_a_step_of_the_bus_clock_hides_no_stall_and_makes_none(step: int) -> None:
    """A job that stops with the step is found within its limit, counted from the step."""
    detector = Stall().build()
    fed(detector, running(20))
    health = ReaderHealth(watching_since=START + 21 + step)
    found = ticks(detector, 21 + step, 300 + step, health)
    assert [round(item.time - START - step) for item in found] == [142]


def told(kind: str, second: float, rank: int = 0, **detail: Any) -> dict[str, Any]:
    """An event of a rank."""
    who = {"job": "leviathan-7b", "attempt": "1", "rank": rank, "node": f"n{rank}", "simulated": False}
    return {"time": START + second, "kind": kind, "detail": json.dumps(detail), **who}


def stand(second: float, rank: int, *functions: str) -> dict[str, Any]:
    """The stack of a rank, innermost function first."""
    return told("stack", second, rank, frames=[f"{name} (job/{name}.py:1)" for name in functions])


def stalled_with(*events: dict[str, Any], ranks: int = 8) -> Finding:
    """The stall of a job whose ranks told ``events`` before its patience ended."""
    detector = Stall().build()
    fed(detector, running(20, ranks=ranks))
    detector.observe(frame(events, "event/1"))
    (found,) = ticks(detector, 21, 141)
    return found


WAITING = ("wait", "all_reduce", "train")


def test_the_rank_that_the_others_wait_for_is_named_with_its_stack() -> None:
    """Seven stand in a collective, one in its data loader."""
    others = [stand(80, rank, *WAITING) for rank in range(8) if rank != 5]
    found = stalled_with(*others, stand(80, 5, "read", "next_batch", "train"))
    assert found.title.endswith("121 s ago: 7 ranks are in all_reduce, rank 5 is in the data loader (next_batch)")
    assert found.rank == 5
    assert found.evidence["stack"][0] == "read (job/read.py:1)"
    assert found.evidence["ranks_at"] == {"in all_reduce": 7, "in the data loader (next_batch)": 1}


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([stand(80, rank, *WAITING) for rank in range(8)], id="all in one place"),
        pytest.param(
            [stand(80, rank, "next_batch") for rank in range(7)] + [stand(80, 7, *WAITING)], id="most do not wait"
        ),
        pytest.param(
            [stand(80, rank, *WAITING) for rank in range(6)] + [stand(80, 6, "f"), stand(80, 7, "g")], id="two apart"
        ),
        pytest.param([stand(80, 0, "next_batch")], id="one stack alone"),
        pytest.param([], id="none"),
    ],
)
def test_no_rank_is_named_where_none_stands_apart(events: list[dict[str, Any]]) -> None:
    """A wrong name costs a night."""
    found = stalled_with(*(events or [told("heartbeat", 80)]))
    assert found.rank is None
    assert "stack" not in found.evidence


def test_a_rank_that_is_gone_is_named_as_gone() -> None:
    """Its process was killed: that is no orderly end, and the others hang."""
    events = [stand(80, rank, *WAITING) for rank in range(7)]
    found = stalled_with(*events, told("job_end", 30, 7, status="ended without goodbye"))
    assert found.title.endswith("7 ranks are in all_reduce, rank 7 is gone")
    assert found.evidence["ranks_gone"] == [7]


def test_stacks_that_come_after_the_stall_are_told_once_more() -> None:
    """As a further finding of the same stall."""
    detector = StallDetector(Stall())
    fed(detector, running(20, ranks=2))
    (first,) = ticks(detector, 21, 141)
    detector.observe(frame([stand(142, 0, *WAITING), stand(142, 1, "next_batch")], "event/1"))
    (second,) = ticks(detector, 142, 160)
    assert (first.rank, second.rank) == (None, 1)
    assert first.id != second.id
    assert (first.onset_step, first.onset_time) == (second.onset_step, second.onset_time)
    fed(detector, [row(21, second=161)])
    assert detector.stacks == {}


def test_a_phase_that_is_told_has_a_patience_of_its_own() -> None:
    """Half an hour for an evaluation; once it has ended the usual time holds."""
    detector = Stall().build()
    fed(detector, running(20))
    detector.observe(frame([told("phase", 21, phase="eval", state="begin")], "event/1"))
    assert ticks(detector, 21, 1_000) == []
    detector.observe(frame([told("phase", 1_000, phase="eval", state="end")], "event/1"))
    assert len(ticks(detector, 1_001, 1_200)) == 1


def test_a_stack_or_phase_that_cannot_be_read_says_nothing() -> None:
    """Whatever a job writes into its details."""
    bad = [{**told("stack", 80), "detail": text} for text in ("", "[]", '{"frames": 5}', '{"frames": [5]}', "{")]
    bad += [{**told("phase", 80), "detail": text} for text in ("", "[]", '{"phase": ["eval"]}', "{")]
    assert stalled_with(*bad).rank is None
