"""``run.watch`` on real PyTorch: what it measures is what PyTorch says, and the training is the same to the bit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from telemetry_bus.topics import Topic
from tests.sdk.frameworks import Frameworks
from tests.sdk.recorder import Recorder
from tests.sdk.test_delivery import listener_at

pytestmark = pytest.mark.timeout(120)
NORMS = ["adamw", "sgd", "compile", "unlogged", "main_grad", "broken", "microbatches"]
SCENES = [*NORMS, "overflow", "scaler", "loss", "layers", "closed"]
BAD_STEP = 7
FIRST = "0.weight"


class Watched(NamedTuple):
    """What PyTorch said of each step of a scene, and the rows that came, of which there is one a step."""

    said: list[dict[str, Any]]
    rows: dict[int, dict[str, Any]]
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="module")
def watched(frameworks: Frameworks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Watched]:
    """Run all scenes once, with a collector; return what came of one."""
    folder, recorder = tmp_path_factory.mktemp("watched"), Recorder()

    async def train() -> list[dict[str, Any]]:
        async with listener_at(folder / "c.sock", recorder):
            return await frameworks.run("watch", *SCENES, NANTUCKET_URL=f"unix://{folder}/c.sock")

    said = asyncio.run(train())

    def of(scene: str) -> Watched:
        mine = [each for each in said if each["scene"] == scene]
        assert mine.pop() == {"scene": scene, "dropped": 0}
        rows = [row for row in recorder.rows(Topic.TRAIN) if row["job"] == scene]
        assert len({row["step"] for row in rows}) == len(rows)
        metrics = [row for row in recorder.rows(Topic.METRICS) if row["job"] == scene]
        return Watched(mine, {row["step"]: row for row in rows}, metrics)

    return of


def same(one: float | None, said: str) -> bool:
    """The same number but for float32's rounding; NaN is NaN."""
    return one is not None and float(said) == pytest.approx(one, rel=2e-3, nan_ok=True)


@pytest.mark.parametrize("scene", NORMS)
def test_each_step_has_the_norms_that_torch_computes(watched: Callable[[str], Watched], scene: str) -> None:
    """Gradient and update, of every step, healthy or not, logged or not, in one row with what the job says itself."""
    said, rows, _ = watched(scene)
    assert sorted(rows) == [each["step"] for each in said]
    for each in said:
        row = rows[each["step"]]
        assert same(row["grad_norm"], each["grad_norm"]), (row, each)
        if "update_norm" in each and float(each["update_norm"]) > 1e-3:
            assert same(row["update_norm"], each["update_norm"]), (row, each)
        assert (row["loss"] is None) == (scene == "unlogged")
        assert (row["scope"], row["watched_elements"], row["total_elements"]) == ("shard", 385, 385)


def test_the_first_bad_parameter_is_named_and_its_elements_counted(watched: Callable[[str], Watched]) -> None:
    """Five elements of one parameter at one step; before it nothing, after it everything."""
    rows = watched("adamw").rows
    bad = {step: (row["nonfinite"], row["first_nonfinite"]) for step, row in rows.items()}
    assert {bad[step] for step in range(BAD_STEP)} == {(0, None)}
    assert (bad[BAD_STEP], bad[BAD_STEP + 1]) == ((5, FIRST), (385, "3.bias"))


def test_a_bad_microbatch_is_counted_where_it_arose(watched: Callable[[str], Watched]) -> None:
    """Of three passes to a step the second was bad: the row says which, and what was bad in it."""
    rows = watched("microbatches").rows
    bad = rows[BAD_STEP]
    assert (bad["microbatch"], bad["nonfinite"], bad["first_nonfinite"]) == (1, 5, FIRST)
    assert rows[BAD_STEP - 1]["microbatch"] is None


def test_a_norm_that_overflows_has_no_bad_element(watched: Callable[[str], Watched]) -> None:
    """Every element is finite: the norm alone is not, and the row says both."""
    bad = watched("overflow").rows[BAD_STEP]
    assert (bad["grad_norm"], bad["nonfinite"], bad["first_nonfinite"]) == (math.inf, 0, None)


def test_a_step_that_the_loss_scaler_skips_is_said_as_such(watched: Callable[[str], Watched]) -> None:
    """The scale is taken off the norm; the step with an overflow was skipped and the scale halved behind it."""
    said, rows, _ = watched("scaler")
    assert [row["skipped"] for row in rows.values()] == [step == BAD_STEP for step in rows]
    assert [row["loss_scale"] for row in rows.values()] == [each["scale"] for each in said]
    assert (rows[BAD_STEP]["loss_scale"], rows[BAD_STEP + 1]["loss_scale"]) == (1024.0, 512.0)
    assert (rows[BAD_STEP]["nonfinite"], rows[BAD_STEP]["update_norm"]) == (5, None)
    for each in said:
        assert same(rows[each["step"]]["grad_norm"], each["grad_norm"])


def test_what_is_not_watched_is_said(watched: Callable[[str], Watched]) -> None:
    """A layer without a gradient is in the total and not in what was watched; a frozen one is in neither."""
    said, rows, _ = watched("loss")
    assert {(row["watched_elements"], row["total_elements"]) for row in rows.values()} == {(385, 385 + 30)}
    assert rows[BAD_STEP]["first_nonfinite"] == "body.0.weight"
    assert all(same(rows[each["step"]]["loss"], each["loss"]) for each in said)


def test_layers_have_norms_every_so_many_steps(watched: Callable[[str], Watched]) -> None:
    """Their squares add up to the whole."""
    _, rows, metrics = watched("layers")
    layers = [row for row in metrics if row["name"] == "grad_norm"]
    assert {(row["step"], row["layer"]) for row in layers} == {
        (s, layer) for s in (0, 5, 10) for layer in ("0", "2", "3")
    }
    for step in (0, 5):
        total = math.sqrt(sum(row["value"] ** 2 for row in layers if row["step"] == step))
        assert same(rows[step]["grad_norm"], repr(total))


def test_a_watch_that_is_closed_leaves_nothing_behind(watched: Callable[[str], Watched]) -> None:
    """Its hooks are gone; what the job logs goes on."""
    said, rows, _ = watched("closed")
    (left,) = [each for each in said if "hooks" in each]
    assert left == {"scene": "closed", "hooks": [False] * 6, "forward": 0}
    assert [row["grad_norm"] is None for row in rows.values()] == [step > 4 for step in range(12)]


async def test_the_training_is_the_same_to_the_bit(frameworks: Frameworks, tmp_path: Path) -> None:
    """With the watch and without, and without any collector."""
    scenes, nowhere = ("adamw", "scaler", "microbatches"), f"unix://{tmp_path}/nobody.sock"
    without = await frameworks.run("watch", "--off", *scenes, NANTUCKET_URL=nowhere)
    with_watch = await frameworks.run("watch", *scenes, NANTUCKET_URL=nowhere)
    steps = [[each for each in said if "step" in each] for said in (with_watch, without)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 36


@pytest.mark.parametrize("how", ["mesh", "megatron"])
async def test_a_rank_says_where_it_stands_and_whether_its_replica_agrees(
    frameworks: Frameworks, tmp_path: Path, how: str
) -> None:
    """From a real device mesh and a real Megatron-LM; one changed bit on one rank changes its checksum alone."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        await frameworks.run("standing", how, ranks=2, NANTUCKET_URL=f"unix://{tmp_path}/c.sock")
    rows = {row["rank"]: row for row in recorder.rows(Topic.TRAIN)}
    assert {rank: (row["dp"], row["tp"]) for rank, row in rows.items()} == {0: (0, 0), 1: (0, 1)}
    assert {row["pp"] for row in rows.values()} == ({0} if how == "megatron" else {None})
    sums = {(row["rank"], row["step"]): row["value"] for row in recorder.rows(Topic.METRICS)}
    assert {row["name"] for row in recorder.rows(Topic.METRICS)} == {"checksum/parameters"}
    assert sums[0, 1] == sums[1, 1] == sums[0, 2] != sums[1, 2]
    assert sums[0, 3] != sums[0, 2]
    assert all(value == int(value) for value in sums.values())
    assert len(sums) == 6


async def test_no_call_waits_for_the_gpu(frameworks: Frameworks, tmp_path: Path) -> None:
    """As PyTorch itself counts it, on a real GPU; where there is none this shows nothing."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        (said,) = await frameworks.run("cuda", NANTUCKET_URL=f"unix://{tmp_path}/c.sock")
    if said["device"] is None:
        pytest.skip("no GPU")
    assert said["waits"] == []
    assert [row["nonfinite"] for row in recorder.rows(Topic.TRAIN)] == [0] * 5
