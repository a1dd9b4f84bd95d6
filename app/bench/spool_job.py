"""The training job of ``bench spool``: it logs steps through the real SDK, and goes NaN when it is told to."""

import argparse
import json
import sys
import threading
import time

import nantucket


def main() -> None:
    """Log until standard input ends; from the line ``nan`` on every loss is NaN, and the first one is stamped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--step-seconds", type=float, required=True)
    options = parser.parse_args()
    sick, over = threading.Event(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "nan":
                sick.set()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    run = nantucket.init(job=options.job, rank=0, world_size=1)
    step, stamped = 0, False
    while not over.wait(options.step_seconds):
        bad = sick.is_set()
        if bad and not stamped:
            stamped = True
            sys.stdout.write(json.dumps({"nan_step": step, "monotonic_ns": time.monotonic_ns()}) + "\n")
            sys.stdout.flush()
        loss = float("nan") if bad else 2.0
        run.log(step=step, loss=loss, grad_norm=1.0, nonfinite=7 if bad else 0, scope="shard")
        step += 1
    run.finish()
    sys.stdout.write(json.dumps({"steps": step}) + "\n")


if __name__ == "__main__":
    main()
