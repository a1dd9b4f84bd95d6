"""The loop of the training job: step, ledger, log, until it has been bad for long enough or the steps are used up."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from app.demo_job.ledger import Ledger, Value
from app.demo_job.trainer import StepResult, Trainer

LogStep = Callable[..., None]
"""The SDK's ``run.log``, or anything that takes the same keywords."""


@dataclass(frozen=True)
class JobName:
    """Who the job says it is: to the SDK, and in every line of the ledger."""

    job: str
    attempt: str
    rank: int


@dataclass(frozen=True)
class RunLimits:
    """When the job ends: after ``steps`` steps, or ``after_seconds`` after the first bad one, whichever comes first."""

    steps: int
    after_seconds: float


def run_job(
    name: JobName,
    trainer: Trainer,
    ledger: Ledger,
    log: LogStep,
    limits: RunLimits,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Train until ``limits``; returns how many steps were run. ``monotonic`` (seconds) times the steps and the end.

    The first bad step is in the ledger, durably, before ``log`` is called for it. Training goes on after it as a job
    without a guard would: what was one overflow becomes NaN in every parameter.
    """
    ledger.write("start", asdict(name) | _start_values(trainer, limits))
    stop_at: float | None = None
    done = 0
    while done < limits.steps and (stop_at is None or monotonic() < stop_at):
        began = monotonic()
        result = trainer.step()
        ended = monotonic()
        if result.is_bad and stop_at is None:
            stop_at = ended + limits.after_seconds
            ledger.write("nonfinite", asdict(name) | _first_bad_values(result))
        _log_step(log, trainer, result, ended - began)
        done += 1
    ledger.write("end", asdict(name) | {"steps": done})
    return done


def _start_values(trainer: Trainer, limits: RunLimits) -> dict[str, Value]:
    counted = {"parameters": trainer.model.parameter_count}
    return asdict(trainer.config) | asdict(limits) | counted


def _first_bad_values(result: StepResult) -> dict[str, Value]:
    return {
        "step": result.step,
        "parameter": result.first_nonfinite,
        "nonfinite": result.nonfinite,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
    }


def _log_step(log: LogStep, trainer: Trainer, result: StepResult, step_seconds: float) -> None:
    """Give one step to the SDK. Every element of every gradient is looked at, so watched is total."""
    log(
        step=result.step,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=result.learning_rate,
        loss_scale=trainer.config.loss_scale,
        skipped=False,  # a static scale: no step is ever left out, so an overflow here is no scaler finding its way
        nonfinite=result.nonfinite,
        first_nonfinite=result.first_nonfinite,
        watched_elements=trainer.model.parameter_count,
        total_elements=trainer.model.parameter_count,
        step_seconds=step_seconds,
        tokens=trainer.tokens_per_step,
        scope="shard",
    )
