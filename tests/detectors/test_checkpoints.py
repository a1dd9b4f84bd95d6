"""The last good checkpoint of a job that went bad, in the findings that page."""

import json
from typing import Any

import pytest

from detectors import LossSpike, NonFinite, Stall
from detectors.checkpoints import JOBS_MAX, KEPT, Checkpoints
from tests.detectors.rows import NAN, START, fed, frame, row, ticks


def saved(step: int | None, path: Any = None, attempt: str = "1", job: str = "leviathan-7b") -> dict[str, Any]:
    """A checkpoint is complete."""
    who = {"job": job, "attempt": attempt, "rank": 0, "step": step, "simulated": False}
    return {"time": START, "kind": "checkpoint_end", "detail": json.dumps({"path": path}), **who}


def named(found: Any) -> Any:
    """What the finding names."""
    return found.evidence.get("last_good_checkpoint")


def test_what_was_saved_before_the_bad_step_is_the_last_good_one() -> None:
    """One of the bad step itself, or behind it, holds what went wrong."""
    detector = NonFinite().build()
    fed(detector, [row(step, loss=1.0) for step in range(8)])
    detector.observe(frame([saved(3, "/c/3"), saved(5, "/c/5"), saved(8, "/c/8"), saved(9, "/c/9")], "event/1"))
    (found,) = fed(detector, [row(8, loss=NAN)])
    assert named(found) == {"step": 5, "path": "/c/5"}


def test_without_one_nothing_is_named() -> None:
    """A page invents no path."""
    detector = NonFinite().build()
    detector.observe(frame([saved(9), saved(None), saved(1, job="another")], "event/1"))
    (found,) = fed(detector, [row(8, loss=NAN)])
    assert named(found) is None


def test_a_stall_and_a_loss_that_stays_up_name_it_too() -> None:
    """A stalled job's newest checkpoint is good."""
    stall, spike = Stall().build(), LossSpike().build()
    for detector in (stall, spike):
        detector.observe(frame([saved(19, "/c/19")], "event/1"))
    fed(stall, [row(step) for step in range(20)])
    (stalled,) = ticks(stall, 20, 160)
    assert named(stalled) == {"step": 19, "path": "/c/19"}
    high = fed(spike, [row(step, loss=2.0 + 0.01 * (step % 7) if step < 100 else 50.0) for step in range(110)])
    assert {named(found)["step"] for found in high} == {19}


def test_the_attempt_s_own_goes_before_an_earlier_one_s() -> None:
    """A resumed job that has saved nothing yet goes back to what it came from."""
    kept = Checkpoints()
    kept.observe(frame([saved(50, "/a/50"), saved(60, "/a/60")], "event/1"))
    assert kept.evidence("leviathan-7b", "2", 70)["last_good_checkpoint"]["path"] == "/a/60"
    kept.observe(frame([saved(55, "/b/55", attempt="2")], "event/1"))
    assert kept.evidence("leviathan-7b", "2", 70)["last_good_checkpoint"]["path"] == "/b/55"


def test_memory_is_bounded_and_nonsense_has_no_path() -> None:
    """Whatever jobs say."""
    kept = Checkpoints()
    for at in range(JOBS_MAX + 10):
        kept.observe(frame([saved(1, job=f"j{at}")], "event/1"))
    assert kept.evidence("j0", "1", 5) == {}
    kept.observe(frame([saved(step, "p") for step in range(2 * KEPT)], "event/1"))
    assert kept.evidence("leviathan-7b", "1", KEPT) == {}
    for detail in ("[]", "{", '{"path": 5}', "null"):
        kept.observe(frame([{**saved(1, job="n"), "detail": detail}], "event/1"))
        assert kept.evidence("n", "1", 5) == {"last_good_checkpoint": {"step": 1, "path": None}}


@pytest.mark.parametrize("config", [NonFinite(), Stall(), LossSpike()])
def test_an_event_without_its_columns_is_passed_over(config: Any) -> None:
    """A checkpoint of no job, or without a detail."""
    detector = config.build()
    event = {"time": START, "kind": "checkpoint_end", "simulated": False}
    assert list(detector.observe(frame([event], "event/1"))) == []
