"""``python -m app.demo_job.survey``: where and when many seeds and kicks overflow. It made the tables of docs/demo.md.

A seed is trained once without a kick; at each kick step the trainer is copied and the copy is kicked. That gives the
same numbers as a run that was started with this kick, and saves most of the time.
"""

import argparse
import copy
import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from app.demo_job.corpus import load_corpus
from app.demo_job.trainer import StepResult, Trainer, TrainingConfig, draw_kick

FOLLOW_STEPS = 100
"""Steps that a kicked run is given to go bad; the slowest that was seen to took 49."""
NO_KICK_STEP = 2**31
FIXED_KICKS = [(step, factor) for step in (200, 500) for factor in (20, 50, 100)]


def main() -> None:
    """Print a JSON line a kick and a JSON line a seed."""
    parser = argparse.ArgumentParser(prog="python -m app.demo_job.survey", description=__doc__)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        drawn = draw_kick(seed)
        _survey_seed(seed, {drawn} | set(FIXED_KICKS), drawn)


def _survey_seed(seed: int, kicks: Iterable[tuple[int, int]], drawn: tuple[int, int]) -> None:
    trainer = Trainer(TrainingConfig(seed=seed, rank=0, kick_step=NO_KICK_STEP, kick_factor=1), load_corpus())
    losses: list[float] = []
    largest = 0.0
    for step in range(max(step for step, _ in kicks) + 1):
        for kick_step, factor in sorted(kicks):
            if kick_step == step:
                is_drawn = (kick_step, factor) == drawn
                print(json.dumps({"seed": seed, "drawn": is_drawn} | _kicked(trainer, step, factor)), flush=True)
        result = trainer.step()
        assert not result.is_bad, f"seed {seed} went bad at step {step} with no kick: {result}"
        losses.append(result.loss)
        largest = max(largest, *(float(np.abs(grad).max()) for grad in trainer.gradients.values()))
    means = {"loss_first": losses[0], "loss_last_50": float(np.mean(losses[-50:]))}
    print(json.dumps({"seed": seed, "healthy_steps": len(losses), "largest_gradient": largest} | means), flush=True)


def _kicked(trainer: Trainer, step: int, factor: int) -> dict[str, object]:
    copied = copy.deepcopy(trainer)
    copied.config = replace(trainer.config, kick_step=step, kick_factor=factor)
    results: list[StepResult] = [copied.step()]
    while not results[-1].is_bad and len(results) < FOLLOW_STEPS:
        results.append(copied.step())
    last = results[-1]
    return {
        "kick_step": step,
        "kick_factor": factor,
        "bad_step": last.step if last.is_bad else None,
        "parameter": last.first_nonfinite,
        "nonfinite": last.nonfinite,
        "parameters_hit": sum(not np.isfinite(grad).all() for grad in copied.gradients.values()),
        "loss": round(last.loss, 2),
    }


if __name__ == "__main__":
    main()
