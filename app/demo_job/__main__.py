"""``python -m app.demo_job``: one rank of the demo's training job, reporting through the SDK."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

STEPS_MAX = 3_000
"""Steps of a run that nothing makes go bad: five times the latest kick a seed can draw; a minute at 20 ms a step."""
RANK_MAX = 2**20
"""Ranks are a seed's third word here; a million is more than any launcher starts."""


def main() -> None:
    """Read the options, set numpy to one thread, and train."""
    options = _parser().parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read by numpy's BLAS when it is loaded: so before the imports of _run
    _run(options)


def _run(options: argparse.Namespace) -> None:
    # These load numpy, which must not happen before main() has set the number of threads.
    import nantucket  # noqa: PLC0415
    from app.demo_job.corpus import load_corpus  # noqa: PLC0415
    from app.demo_job.job import JobName, RunLimits, run_job  # noqa: PLC0415
    from app.demo_job.ledger import Ledger  # noqa: PLC0415
    from app.demo_job.trainer import Trainer, TrainingConfig, draw_kick  # noqa: PLC0415

    drawn_step, drawn_factor = draw_kick(options.seed)
    config = TrainingConfig(
        seed=options.seed,
        rank=options.rank,
        kick_step=drawn_step if options.kick_step is None else options.kick_step,
        kick_factor=drawn_factor if options.kick_factor is None else options.kick_factor,
    )
    trainer = Trainer(config, load_corpus())
    with nantucket.init(job=options.job, rank=options.rank) as run, Ledger(options.ledger) as ledger:
        name = JobName(job=options.job, attempt=run.attempt, rank=options.rank)
        run_job(name, trainer, ledger, run.log, RunLimits(options.steps, options.after_seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.demo_job", description=__doc__)
    parser.add_argument("--job", required=True, help="name of the job")
    parser.add_argument("--rank", type=_whole(0, RANK_MAX), default=0)
    parser.add_argument("--seed", type=_whole(0, 2**63 - 1), required=True, help="decides weights, batches and kick")
    parser.add_argument("--kick-step", type=_whole(0, 2**31 - 1), help="default: drawn from the seed")
    parser.add_argument("--kick-factor", type=_positive, help="1 is no kick; default: drawn from the seed")
    parser.add_argument("--steps", type=_whole(1, 2**31 - 1), default=STEPS_MAX, help="most steps to run")
    parser.add_argument("--ledger", type=Path, required=True, help="file to append the job's own account to")
    parser.add_argument(
        "--after-seconds", type=_positive, default=2.0, help="how long to go on after the first bad step"
    )
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A converter to a whole number from ``low`` to ``high``."""

    def convert(text: str) -> int:
        expected = f"expected a whole number from {low} to {high}, found {text!r}"
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(expected) from error
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(expected)
        return number

    return convert


def _positive(text: str) -> float:
    expected = f"expected a positive finite number, found {text!r}"
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(expected) from error
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(expected)
    return number


if __name__ == "__main__":
    main()
