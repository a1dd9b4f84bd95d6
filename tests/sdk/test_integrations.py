"""The callbacks for Transformers, Lightning and JAX on the real frameworks, through a real listener."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from telemetry_bus.topics import Topic
from tests.sdk.frameworks import Frameworks
from tests.sdk.recorder import ROOT, Recorder
from tests.sdk.test_delivery import listener_at

pytestmark = pytest.mark.timeout(150)
BAD_STEP = 7


async def reported(
    frameworks: Frameworks, folder: Path, job: str, *words: str
) -> tuple[list[dict[str, Any]], Recorder]:
    """Run a job with a collector; return what it printed and what came."""
    recorder = Recorder()
    async with listener_at(folder / "c.sock", recorder):
        said = await frameworks.run(job, *words, NANTUCKET_URL=f"unix://{folder}/c.sock")
    return said, recorder


def steps_of(recorder: Recorder, phase: str | None = None) -> list[dict[str, Any]]:
    """The training rows of a phase."""
    return [row for row in recorder.rows(Topic.TRAIN) if row["phase"] == phase]


def told(recorder: Recorder, kind: str) -> list[tuple[int | None, Any]]:
    """Step and detail of the events of a kind."""
    return [(row["step"], json.loads(row["detail"])) for row in recorder.rows(Topic.EVENTS) if row["kind"] == kind]


@pytest.mark.parametrize("job", ["hf_job", "lightning_job"])
async def test_a_trainer_reports_each_step_and_the_first_bad_parameter(
    frameworks: Frameworks, tmp_path: Path, job: str
) -> None:
    """Steps as the framework numbers them, with losses, gradients, evaluations and checkpoints; then a NaN."""
    _, recorder = await reported(frameworks, tmp_path, job, str(tmp_path / "out"), "with", str(BAD_STEP))
    rows = steps_of(recorder)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(row["loss"] is not None and row["lr"] is not None and row["scope"] == "shard" for row in rows)
    bad = {row["step"]: (row["nonfinite"], row["first_nonfinite"]) for row in rows}
    assert {bad[step] for step in range(1, BAD_STEP)} == {(0, None)}
    name, size = {"hf_job": ("transformer.h.0.mlp.c_fc.weight", 4096), "lightning_job": ("net.0.weight", 64)}[job]
    assert bad[BAD_STEP] == (size, name)
    assert [step for step, _ in told(recorder, "checkpoint_end")][-1] == 10
    phases = [(detail["phase"], detail["state"]) for _, detail in told(recorder, "phase")]
    assert phases[:2] == [("eval", "begin"), ("eval", "end")]
    names = {row["name"] for row in recorder.rows(Topic.METRICS)}
    assert {"hf_job": "eval/loss", "lightning_job": "eval/val_loss"}[job] in names
    assert told(recorder, "job_end")[0][1]["status"] == "finished"


@pytest.mark.parametrize("job", ["hf_job", "lightning_job"])
async def test_a_trainer_trains_the_same_to_the_bit(frameworks: Frameworks, tmp_path: Path, job: str) -> None:
    """With the callback, whose collector is not there, and without it."""
    nowhere = f"unix://{tmp_path}/nobody.sock"
    said = [await frameworks.run(job, str(tmp_path / how), how, NANTUCKET_URL=nowhere) for how in ("with", "without")]
    assert said[0] == said[1]
    assert said[0]


async def test_the_loss_that_the_trainer_averages_is_there_for_each_step(
    frameworks: Frameworks, tmp_path: Path
) -> None:
    """Five steps' losses have the average that the trainer logs, two microbatches each."""
    said, recorder = await reported(frameworks, tmp_path, "hf_job", str(tmp_path / "out"), "with")
    losses = {row["step"]: row["loss"] for row in steps_of(recorder)}
    norms = {row["step"]: row["grad_norm"] for row in steps_of(recorder)}
    logged = {each["step"]: each for each in said if "step" in each}
    for last in (5, 10):
        mean = sum(losses[step] for step in range(last - 4, last + 1)) / 5
        assert float(logged[last]["loss"]) == pytest.approx(mean, rel=1e-3)
        assert float(logged[last]["norm"]) == pytest.approx(norms[last], rel=1e-3)


async def test_jax_reports_without_waiting_and_names_the_leaf(frameworks: Frameworks, tmp_path: Path) -> None:
    """Each step as JAX itself computes it; three bad elements of one leaf at one step."""
    said, recorder = await reported(frameworks, tmp_path, "jax_job", str(BAD_STEP))
    assert said.pop() == {"dropped": 0}
    rows = {row["step"]: row for row in steps_of(recorder)}
    for each in said:
        row = rows[each["step"]]
        assert float(each["loss"]) == pytest.approx(row["loss"], rel=1e-5, nan_ok=True)
        assert float(each["norm"]) == pytest.approx(row["grad_norm"], rel=1e-5, nan_ok=True)
        assert (row["scope"], row["watched_elements"]) == ("shard", 160)
    assert rows[BAD_STEP - 1]["nonfinite"] == 0
    assert (rows[BAD_STEP]["nonfinite"], rows[BAD_STEP]["first_nonfinite"]) == (3, "layers.0.w")
    assert {row["name"] for row in recorder.rows(Topic.METRICS)} == {"accuracy"}


PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
async def test_the_example_on_each_page_runs(frameworks: Frameworks, tmp_path: Path, page: Path) -> None:
    """As it stands there: it reports its steps and ends."""
    _, _, rest = page.read_text().partition("```python\n")
    code, end, _ = rest.partition("```")
    assert end
    program = tmp_path / "example.py"
    program.write_text(code)
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        url = f"unix://{tmp_path}/c.sock"
        await frameworks.run(str(program.with_suffix("")), NANTUCKET_URL=url, FOLDER=str(tmp_path / "out"))
    rows = steps_of(recorder)
    assert len(rows) >= 5
    assert all(row["grad_norm"] is not None for row in rows)
    assert told(recorder, "job_end")[0][1]["status"] == "finished"
