"""Loss spikes: far above what the run has done before, and for long enough."""

import random
from typing import Any

import pytest

from detectors import LossSpike
from telemetry_bus.schemas import FindingState, Severity
from tests.detectors.rows import NAN, ended, fed, row


def level(first: int, last: int, loss: float = 2.0, **values: Any) -> list[dict[str, Any]]:
    """Rows around one loss, with 2 % of noise."""
    chance = random.Random(first)
    return [row(step, loss=loss * (1 + chance.gauss(0, 0.02)), **values) for step in range(first, last)]


def test_a_loss_that_stays_high_is_a_page_at_its_third_row() -> None:
    """The page names the step at which it began and what is usual."""
    found = fed(LossSpike().build(), level(0, 300) + level(300, 330, 6.0))
    assert [(item.severity, item.step) for item in found] == [(Severity.WARNING, 300), (Severity.CRITICAL, 302)]
    assert found[1].onset_step == 300
    assert found[1].evidence["usual_loss"] == pytest.approx(2.0, rel=0.05)
    assert found[1].title.startswith("leviathan-7b: loss spike since step 300")


def test_a_loss_that_comes_back_is_resolved() -> None:
    """Back in band for fifty rows, the incident is over, and the baseline is still the one from before."""
    found = fed(LossSpike().build(), level(0, 300) + level(300, 330, 6.0) + level(330, 400))
    assert [(item.state, item.step) for item in found[2:]] == [(FindingState.RESOLVED, 379)]


def test_one_bad_row_is_a_warning() -> None:
    """It heals at once: nobody is woken."""
    found = fed(LossSpike().build(), level(0, 300) + level(300, 301, 6.0) + level(301, 400))
    assert [(item.severity, item.state) for item in found] == [
        (Severity.WARNING, FindingState.FIRING),
        (Severity.WARNING, FindingState.RESOLVED),
    ]


def test_a_low_loss_is_never_bad() -> None:
    """The test is one-sided."""
    assert fed(LossSpike().build(), level(0, 300) + level(300, 400, 0.01)) == []


def test_a_slow_rise_that_takes_its_window_along_is_found() -> None:
    """Against the best level of the run a loss that climbs by a third is far away, however slowly it came."""
    rows = level(0, 400)
    rows += [
        row(step, loss=2.0 * 1.001 ** (step - 400) * (1 + random.Random(step).gauss(0, 0.02)))
        for step in range(400, 700)
    ]
    found = fed(LossSpike().build(), rows)
    assert [item.severity for item in found] == [Severity.CRITICAL]
    assert found[0].step is not None
    assert 420 < found[0].step < 600


def test_heavy_tails_wake_nobody() -> None:
    """A loss that is log-normal with a wide spread has rows ten times the median all the time."""
    chance = random.Random(5)
    rows = [row(step, loss=chance.lognormvariate(0.0, 1.5)) for step in range(5_000)]
    assert [item for item in fed(LossSpike().build(), rows) if item.severity is Severity.CRITICAL] == []


def test_a_learning_rate_restart_is_given_room() -> None:
    """The rate returns to where it was and the loss rises for a while, as it must; beyond any earlier rate it is no
    restart."""
    rows = level(0, 300, lr=1e-3) + level(300, 500, lr=1e-5) + level(500, 540, 2.35, lr=1e-3)
    assert [item for item in fed(LossSpike().build(), rows) if item.severity is Severity.CRITICAL] == []
    kicked = level(0, 300, lr=1e-3) + level(300, 500, lr=1e-5) + level(500, 540, 2.35, lr=1.0)
    assert [item.severity for item in fed(LossSpike().build(), kicked)][-1:] == [Severity.CRITICAL]


def test_the_curve_is_told_by_its_best_reporter_alone() -> None:
    """Local losses of other ranks, which vary, are not mixed into the job's own."""
    rows = []
    for item in level(0, 300):
        rows.append({**item, "scope": "global"})
        rows += [row(item["step"], rank, loss=9.0 * rank, scope="shard") for rank in (1, 2)]
    assert fed(LossSpike().build(), rows) == []


def test_another_rank_takes_over_when_the_reporter_is_gone() -> None:
    """A job whose rank 0 stopped reporting is still watched."""
    rows = (
        level(0, 300)
        + [row(step, 1, loss=2.0) for step in range(300, 420)]
        + [row(step, 1, loss=8.0) for step in range(420, 430)]
    )
    assert [item.severity for item in fed(LossSpike().build(), rows)][-1:] == [Severity.CRITICAL]


def test_nan_and_absent_losses_are_no_levels() -> None:
    """They are neither learnt nor judged; the other detector has its say about NaN."""
    between = [row(step, loss=NAN if step % 2 else None) for step in range(300, 400)]
    assert fed(LossSpike().build(), level(0, 300) + between + level(400, 500)) == []


def test_a_new_level_that_stays_is_taken_in_the_end() -> None:
    """An incident cannot be open for ever: after so many rows the level is the new one."""
    found = fed(LossSpike(adopt_rows=200).build(), level(0, 300) + level(300, 900, 6.0))
    assert [item.state for item in found] == [FindingState.FIRING, FindingState.FIRING, FindingState.RESOLVED]


def test_the_end_of_a_job_ends_its_spike() -> None:
    """A job that ends while its loss is high leaves no incident open for ever."""
    detector = LossSpike().build()
    fed(detector, level(0, 300) + level(300, 330, 6.0))
    found = list(detector.observe(ended(second=331)))
    assert [(item.state, item.severity) for item in found] == [(FindingState.RESOLVED, Severity.CRITICAL)]
    assert list(detector.observe(ended(second=332))) == []


def test_a_spike_that_comes_back_at_the_same_step_is_another_one() -> None:
    """After a roll-back the same steps may spike again: their findings have ids of their own, and page again."""
    detector = LossSpike().build()
    first = fed(detector, level(0, 300) + level(300, 330, 6.0) + level(330, 400))
    again = [dict(item, time=item["time"] + 500) for item in level(250, 300) + level(300, 330, 6.0)]
    second = fed(detector, again)
    assert [item.severity for item in second if item.state is FindingState.FIRING][-1] is Severity.CRITICAL
    assert not {item.id for item in first} & {item.id for item in second}
