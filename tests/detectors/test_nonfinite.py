"""Non-finite numbers: the first place, and only what is proven of it."""

import random
from typing import Any

import pytest

from detectors import NonFinite
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import FindingState, Severity
from tests.detectors.rows import INF, NAN, START, ended, fed, row


def healthy(first: int, last: int, ranks: int = 1, **values: Any) -> list[dict[str, Any]]:
    """Finite rows of some ranks."""
    return [
        row(step, rank, loss=2.0, grad_norm=1.0, nonfinite=0, **values)
        for step in range(first, last + 1)
        for rank in range(ranks)
    ]


def firing(findings: list[Finding]) -> list[Finding]:
    """Those that begin or correct something."""
    return [finding for finding in findings if finding.state is FindingState.FIRING]


def test_a_world_of_one_rank_is_named_with_its_first_parameter() -> None:
    """The page says job, parameter, rank and step, with the last finite numbers beside it."""
    bad = row(
        412,
        loss=2.5,
        grad_norm=NAN,
        nonfinite=64,
        first_nonfinite="blocks.1.mlp.w2",
        world_size=1,
        node="n7",
        uuid="GPU-1",
    )
    (found,) = fed(NonFinite().build(), [*healthy(400, 411), bad])
    assert found.title == "leviathan-7b: non-finite gradient in blocks.1.mlp.w2 on rank 0 at step 412"
    assert (found.severity, found.rank, found.parameter, found.node, found.uuid) == (
        Severity.CRITICAL,
        0,
        "blocks.1.mlp.w2",
        "n7",
        "GPU-1",
    )
    assert (found.onset_step, found.onset_time, found.step) == (412, START + 412, 412)
    assert found.evidence["last_finite_loss"] == 2.0
    assert found.evidence["nonfinite"] == 64


def test_rows_from_after_a_reduction_prove_no_place() -> None:
    """Every rank has the NaN after an all-reduce: none is named, and the incident is one."""
    detector = NonFinite().build()
    rows = healthy(0, 3, ranks=4, scope="global", world_size=4)
    found = fed(
        detector,
        rows + [row(4, rank, loss=NAN, scope="global", world_size=4, first_nonfinite="w") for rank in range(4)],
    )
    assert [(item.rank, item.parameter) for item in found] == [(None, None)]
    (count,) = fed(detector, [row(5, 0, loss=NAN, scope="global")])
    assert (count.ranks_affected, count.onset_step) == (4, 4)


def test_a_row_from_before_the_reduction_proves_the_place_afterwards() -> None:
    """It is said again, under another id, as a part of the same episode."""
    detector = NonFinite().build()
    first = fed(detector, [*healthy(0, 3, ranks=3, scope="global"), row(4, 0, loss=NAN, scope="global")])
    again = fed(detector, [row(4, 2, nonfinite=9, scope="shard", first_nonfinite="embed")])
    assert [item.rank for item in first + again] == [None, 2]
    assert again[0].parameter == "embed"
    assert again[0].id != first[0].id
    assert again[0].evidence["episode_step"] == first[0].evidence["episode_step"] == 4


def test_a_late_row_of_an_earlier_step_corrects_the_onset() -> None:
    """Frames of ranks arrive in any order; the place is the earliest."""
    detector = NonFinite().build()
    fed(detector, [*healthy(0, 8, ranks=2), row(9, 0, nonfinite=1, scope="shard", first_nonfinite="b")])
    (again,) = fed(detector, [row(8, 1, second=9.1, nonfinite=3, scope="shard", first_nonfinite="a")])
    assert (again.onset_step, again.rank, again.parameter) == (8, 1, "a")


def test_an_earlier_microbatch_corrects_the_place_within_the_step() -> None:
    """Order inside a step is the order of its microbatches."""
    detector = NonFinite().build()
    bad: dict[str, Any] = {"nonfinite": 1, "scope": "microbatch"}
    fed(detector, [*healthy(0, 3, ranks=2), row(4, 0, microbatch=3, first_nonfinite="b", **bad)])
    (again,) = fed(detector, [row(4, 1, microbatch=1, first_nonfinite="a", **bad)])
    assert (again.rank, again.parameter, again.evidence["microbatch"]) == (1, "a", 1)


def test_a_rank_that_stays_bad_is_said_once() -> None:
    """One finding an episode, not one a step."""
    found = fed(NonFinite().build(), healthy(0, 9) + [row(step, loss=NAN) for step in range(10, 200)])
    assert len(found) == 1


def test_four_thousand_ranks_in_one_frame_are_one_incident_with_their_number() -> None:
    """What an all-reduce has spread is counted, not repeated; the frame's size changes nothing."""
    rows = [
        row(step, rank, loss=NAN if step == 3 else 1.0, scope="global", world_size=4096)
        for step in range(5)
        for rank in range(4096)
    ]
    found = firing(fed(NonFinite().build(), rows))
    assert [(item.ranks_affected, item.rank) for item in found] == [(1, None), (4096, None)]


def test_it_is_over_after_enough_finite_steps() -> None:
    """Twenty finite steps in a row end it, fewer do not."""
    detector = NonFinite(resolve_steps=20).build()
    assert len(fed(detector, [*healthy(0, 3), row(4, loss=NAN), *healthy(5, 23)])) == 1
    (over,) = fed(detector, healthy(24, 24))
    assert (over.state, over.onset_step, over.step) == (FindingState.RESOLVED, 4, 24)


def test_rows_that_say_nothing_end_nothing() -> None:
    """A row without loss, norm or count is absent news, not good news."""
    detector = NonFinite().build()
    found = fed(detector, [*healthy(0, 3), row(4, loss=NAN), *(row(step) for step in range(5, 90))])
    assert [item.state for item in found] == [FindingState.FIRING]


@pytest.mark.parametrize("how", ["job_end", "attempt"])
def test_the_end_of_an_attempt_ends_its_trouble(how: str) -> None:
    """What was wrong with one attempt is not carried into the next, which is judged anew."""
    detector = NonFinite().build()
    fed(detector, [*healthy(0, 3), row(4, loss=NAN)])
    if how == "job_end":
        found = list(detector.observe(ended(second=9)))
    else:
        found = fed(detector, [{**row(0, second=20, loss=NAN), "attempt": "2"}])
    assert [(item.state, item.attempt) for item in found[:1]] == [(FindingState.RESOLVED, "1")]
    assert [(item.state, item.attempt) for item in found[1:]] == (
        [] if how == "job_end" else [(FindingState.FIRING, "2")]
    )


def test_an_isolated_overflow_that_the_scaler_skipped_is_nothing() -> None:
    """That is how float16 training finds its scale."""
    rows = []
    for step in range(200):
        skipped = step % 10 == 5
        rows.append(
            row(
                step,
                loss=2.0,
                grad_norm=INF if skipped else 1.0,
                nonfinite=24 if skipped else 0,
                loss_scale=2.0**16,
                skipped=skipped,
            )
        )
    assert fed(NonFinite().build(), rows) == []


def test_many_skips_in_a_row_are_trouble() -> None:
    """The scaler finds no scale any more: nothing is learnt, and nothing else would say so."""
    rows = healthy(0, 9, loss_scale=1024.0)
    rows += [row(step, loss=2.0, grad_norm=INF, nonfinite=5, skipped=True, loss_scale=512.0) for step in range(10, 30)]
    (found,) = fed(NonFinite(skips_in_a_row=8).build(), rows)
    assert found.onset_step == 17
    assert "8 steps in a row were skipped" in found.title


def test_a_collapsed_scale_is_trouble() -> None:
    """A dynamic scale that has come down to one and still overflows has nothing left to give."""
    rows = [*healthy(0, 9, loss_scale=1024.0), row(10, loss=2.0, nonfinite=5, skipped=True, loss_scale=1.0)]
    (found,) = fed(NonFinite().build(), rows)
    assert "the loss scale has collapsed to 1" in found.title


def test_a_non_finite_gradient_that_was_applied_is_trouble_despite_a_scaler() -> None:
    """skipped=False says that the weights have it now."""
    (found,) = fed(
        NonFinite().build(), [*healthy(0, 9), row(10, loss=2.0, nonfinite=5, skipped=False, loss_scale=64.0)]
    )
    assert found.onset_step == 10


def test_an_infinite_norm_of_finite_elements_is_said_as_such() -> None:
    """The norm's own arithmetic overflowed, which is another thing than a non-finite gradient."""
    (found,) = fed(NonFinite().build(), [*healthy(0, 9), row(10, loss=2.0, grad_norm=INF, nonfinite=0)])
    assert (
        found.title
        == "leviathan-7b: the gradient norm is infinite although every gradient element is finite on rank 0 at step 10"
    )


def test_a_trainer_that_hides_its_loss_is_seen_through() -> None:
    """A loss of 0.0 beside a NaN norm is what a filtered NaN looks like."""
    (found,) = fed(NonFinite().build(), [row(10, loss=2.0, grad_norm=1.0), row(20, loss=0.0, grad_norm=NAN)])
    assert found.title == "leviathan-7b: the gradient norm is NaN on rank 0 at step 20"


@pytest.mark.parametrize("seed", range(12))
def test_large_frames_of_a_sick_job_say_what_small_ones_say(seed: int) -> None:
    """Rows that are looked at once because others say the same change nothing."""
    chance = random.Random(seed)
    rows = []
    for step in range(40):
        for rank in chance.sample(range(40), 40):
            late = step - (chance.random() < 0.02)
            loss = NAN if 5 <= step <= 9 + 20 * (rank == 3) and chance.random() < 0.7 else 2.0
            rows.append(
                row(
                    late,
                    rank,
                    second=step + rank / 100,
                    loss=loss,
                    scope=chance.choice(["global", "shard"]),
                    world_size=40,
                )
            )
    whole, small = NonFinite(resolve_steps=4).build(), NonFinite(resolve_steps=4).build()
    said = [finding for begin in range(0, len(rows), 11) for finding in fed(small, rows[begin : begin + 11])]
    assert [repr(finding) for finding in fed(whole, rows)] == [repr(finding) for finding in said]
    assert {finding.state for finding in said} == {FindingState.FIRING, FindingState.RESOLVED}


def test_a_place_that_is_corrected_by_a_row_without_a_scale_is_said_as_it_is() -> None:
    """What began as a collapsed scale was a NaN on another rank a step before, whose row has no scale."""
    detector = NonFinite().build()
    rows = healthy(0, 9, ranks=2, loss_scale=1024.0)
    fed(detector, [*rows, row(10, loss=2.0, nonfinite=5, skipped=True, loss_scale=1.0)])
    (again,) = fed(detector, [row(9, 1, second=10, loss=NAN, scope="shard")])
    assert again.title == "leviathan-7b: the loss is NaN on rank 1 at step 9"


def test_a_nan_that_comes_back_at_the_same_step_is_another_one() -> None:
    """After a roll-back the same step goes bad again: the usual case, which must page again under ids of its own."""
    detector = NonFinite(resolve_steps=5).build()
    first = fed(detector, [*healthy(0, 60), *(row(step, loss=NAN) for step in range(60, 65))])
    back = [dict(item, time=item["time"] + 100) for item in [*healthy(50, 60), row(60, loss=NAN)]]
    second = fed(detector, back)
    assert [item.state for item in [*first, *second]] == [
        FindingState.FIRING,
        FindingState.RESOLVED,
        FindingState.FIRING,
    ]
    assert (first[0].step, second[-1].step) == (60, 60)
    assert first[0].id != second[-1].id
