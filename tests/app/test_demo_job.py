from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.demo_job.corpus import Corpus, load_corpus
from app.demo_job.job import JobName, RunLimits, run_job
from app.demo_job.ledger import Ledger
from app.demo_job.trainer import (
    KICK_FACTOR_FIRST,
    KICK_FACTOR_LAST,
    KICK_STEP_FIRST,
    KICK_STEP_LAST,
    StepResult,
    Trainer,
    TrainingConfig,
    draw_kick,
)

NAME = JobName(job="opticks", attempt="1", rank=0)
EARLY_KICK = 40
FOLLOW_STEPS = 60
FLOAT16_LIMIT = 65520.0
"""The least magnitude that rounds to infinity in float16: half a unit above its largest value, 65,504."""


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """The text that the demo trains on."""
    return load_corpus()


def config(seed: int, *, kick_step: int = EARLY_KICK, kick_factor: float = 80) -> TrainingConfig:
    """A run as the demo's, kicked early so that a test need not train for long."""
    return TrainingConfig(seed=seed, rank=0, kick_step=kick_step, kick_factor=kick_factor)


def test_a_seed_decides_every_number(corpus: Corpus) -> None:
    """Two runs of a seed are equal to the last bit, overflow included; another seed is another run."""
    first, second = Trainer(config(1, kick_step=4), corpus), Trainer(config(1, kick_step=4), corpus)
    results = [first.step() for _ in range(12)]
    assert repr(results) == repr([second.step() for _ in range(12)])
    assert Trainer(config(2, kick_step=4), corpus).step().loss != results[0].loss


def test_ranks_begin_with_the_same_weights_and_read_other_text(corpus: Corpus) -> None:
    """A rank changes the batches and nothing else."""
    zero = Trainer(config(1), corpus)
    one = Trainer(replace(config(1), rank=1), corpus)
    for name, array in zero.model.params.items():
        np.testing.assert_array_equal(array, one.model.params[name])
    assert zero.step().loss != one.step().loss


def test_without_a_kick_training_is_healthy(corpus: Corpus) -> None:
    """The loss falls, and neither it nor any gradient leaves the finite numbers."""
    trainer = Trainer(config(5, kick_factor=1), corpus)
    results = [trainer.step() for _ in range(60)]
    assert not any(result.is_bad for result in results)
    assert np.mean([result.loss for result in results[-10:]]) < results[0].loss - 1.0


@pytest.mark.parametrize("seed", [0, 7, 23])
def test_a_kick_overflows_float16_in_the_parameter_that_is_named(corpus: Corpus, seed: int) -> None:
    """Nothing is bad before the kick. The first bad number is a float32 gradient that is finite and too large for
    float16, in the first parameter of backward that has one: found here from a second backward, in float32."""
    trainer = Trainer(config(seed), corpus)
    assert not any(trainer.step().is_bad for _ in range(EARLY_KICK))
    before, result = trainer, trainer.step()
    for _ in range(FOLLOW_STEPS):
        if result.is_bad:
            break
        before = copy.deepcopy(trainer)
        result = trainer.step()
    assert result.is_bad
    assert np.isfinite(result.loss)
    assert not np.isfinite(result.grad_norm)
    too_large = _elements_too_large(before)
    assert result.first_nonfinite == next(name for name, count in too_large.items() if count > 0)
    assert result.nonfinite == sum(too_large.values())


def _elements_too_large(before: Trainer) -> dict[str, int]:
    """For each parameter in the order of backward, how many elements of its next gradient float16 cannot hold."""
    again = copy.deepcopy(before)
    again.model.forward(*again.next_batch())
    gradients = dict(again.model.backward(again.config.loss_scale))
    assert all(grad.dtype == np.float32 and np.isfinite(grad).all() for grad in gradients.values())
    return {name: int((np.abs(grad) >= FLOAT16_LIMIT).sum()) for name, grad in gradients.items()}


def test_one_overflow_becomes_nan_everywhere_in_the_next_step(corpus: Corpus) -> None:
    """Training goes on without a guard: the step after the first bad one has a NaN loss and no healthy block."""
    trainer = Trainer(config(0), corpus)
    while not (result := trainer.step()).is_bad:
        assert result.step < EARLY_KICK + FOLLOW_STEPS
    following = trainer.step()
    assert np.isnan(following.loss)
    assert following.nonfinite > 1_000 * result.nonfinite
    assert following.first_nonfinite == "head.bias"


def test_a_drawn_kick_is_within_its_bounds_and_differs_between_seeds() -> None:
    """A run that is given no kick has one from its seed."""
    drawn = [draw_kick(seed) for seed in range(200)]
    assert all(KICK_STEP_FIRST <= step <= KICK_STEP_LAST for step, _ in drawn)
    assert all(KICK_FACTOR_FIRST <= factor <= KICK_FACTOR_LAST for _, factor in drawn)
    assert len(set(drawn)) > 150


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """Where the job writes its ledger."""
    return tmp_path / "ledger.jsonl"


def read(ledger_file: Path) -> list[dict[str, object]]:
    """The lines of a ledger."""
    return [json.loads(line) for line in ledger_file.read_text(encoding="utf-8").splitlines()]


def test_the_first_bad_step_is_in_the_ledger_before_it_is_logged(corpus: Corpus, ledger_file: Path) -> None:
    """The ledger, read at every call of log, tells of the bad step from the call for that step on and not before."""
    rows: list[dict[str, object]] = []
    events_at_log: list[list[object]] = []

    def log(**row: object) -> None:
        rows.append(row)
        events_at_log.append([line["event"] for line in read(ledger_file)])

    with Ledger(ledger_file) as ledger:
        run_job(NAME, Trainer(config(1, kick_step=4), corpus), ledger, log, RunLimits(steps=30, after_seconds=3600))
    bad = next(at for at, row in enumerate(rows) if row["nonfinite"] != 0)
    assert bad >= 4
    assert events_at_log[:bad] == [["start"]] * bad
    assert events_at_log[bad:] == [["start", "nonfinite"]] * (30 - bad)
    start, nonfinite, end = read(ledger_file)
    assert (nonfinite["step"], nonfinite["parameter"]) == (rows[bad]["step"], rows[bad]["first_nonfinite"])
    assert nonfinite["nonfinite"] == rows[bad]["nonfinite"]
    assert [line["attempt"] for line in (start, nonfinite, end)] == ["1", "1", "1"]
    assert (start["seed"], start["kick_step"], start["kick_factor"]) == (1, 4, 80)
    assert end["steps"] == 30


def test_the_job_goes_on_for_as_long_as_it_was_told_after_the_first_bad_step(corpus: Corpus, ledger_file: Path) -> None:
    """With a clock that gains a second at each look, and three looks a step, nine seconds are three steps."""
    rows: list[dict[str, object]] = []
    ticks = itertools.count()
    with Ledger(ledger_file) as ledger:
        steps = run_job(
            NAME,
            Trainer(config(1, kick_step=4), corpus),
            ledger,
            lambda **row: rows.append(row),
            RunLimits(steps=100, after_seconds=9),
            monotonic=lambda: float(next(ticks)),
        )
    bad = next(at for at, row in enumerate(rows) if row["nonfinite"] != 0)
    assert steps == len(rows) == bad + 1 + 3
    assert {row["step_seconds"] for row in rows} == {1.0}


def test_a_healthy_step_is_logged_with_a_zero_and_no_name(corpus: Corpus, ledger_file: Path) -> None:
    """No non-finite element is the number 0, looked for in every element; the first parameter is absent."""
    rows: list[dict[str, object]] = []
    trainer = Trainer(config(1), corpus)
    with Ledger(ledger_file) as ledger:
        run_job(NAME, trainer, ledger, lambda **row: rows.append(row), RunLimits(steps=1, after_seconds=1))
    (row,) = rows
    assert row["nonfinite"] == 0
    assert row["first_nonfinite"] is None
    assert row["watched_elements"] == row["total_elements"] == sum(p.size for p in trainer.model.params.values())
    assert row["tokens"] == 24 * 32
    assert row["scope"] == "shard"


def test_a_loss_alone_that_is_not_finite_names_no_parameter() -> None:
    """The step is bad all the same."""
    assert StepResult(3, float("inf"), 1.0, 0.1, nonfinite=0, first_nonfinite=None).is_bad


@pytest.mark.parametrize(
    ("number", "written"),
    [(float("nan"), "NaN"), (float("inf"), "Infinity"), (-float("inf"), "-Infinity"), (0.0, 0.0), (None, None)],
)
def test_the_ledger_keeps_absent_zero_and_nan_apart(
    ledger_file: Path, number: float | None, written: str | float | None
) -> None:
    """Non-finite numbers are their names, zero is a number, absent is null."""
    with Ledger(ledger_file) as ledger:
        ledger.write("nonfinite", {"loss": number})
    (line,) = read(ledger_file)
    assert line["loss"] == written
    assert type(line["loss"]) is type(written)


def test_the_command_trains_goes_bad_and_ends_by_itself_with_no_collector(tmp_path: Path, ledger_file: Path) -> None:
    """As a process, with the real SDK and nobody at its URL: the ledger is complete and the exit status is 0."""
    ended = command(tmp_path, "--seed", "1", "--kick-step", "4", "--kick-factor", "80", "--ledger", str(ledger_file))
    assert ended.returncode == 0, ended.stderr
    assert [line["event"] for line in read(ledger_file)] == ["start", "nonfinite", "end"]


@pytest.mark.parametrize(
    "options",
    [["--seed", "-1"], ["--seed", "1.5"], ["--kick-factor", "nan"], ["--after-seconds", "0"], ["--steps", "none"]],
    ids=" ".join,
)
def test_a_wrong_option_is_named_with_what_was_expected(tmp_path: Path, ledger_file: Path, options: list[str]) -> None:
    """Wrong usage is exit status 2, and nothing is written."""
    ended = command(tmp_path, "--seed", "1", "--ledger", str(ledger_file), *options)
    assert ended.returncode == 2
    assert f"argument {options[0]}: expected" in ended.stderr
    assert repr(options[1]) in ended.stderr
    assert not ledger_file.exists()


def command(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the job as the demo does, with a collector's socket that is not there."""
    arguments = [sys.executable, "-m", "app.demo_job", "--job", "opticks", "--after-seconds", "0.05", *options]
    environment = {"NANTUCKET_URL": f"unix://{folder / 'nobody.sock'}", "PATH": "/usr/bin:/bin"}
    root = Path(__file__).parents[2]
    return subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True, check=False)
