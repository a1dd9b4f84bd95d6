"""Makes the binary samples with the real libraries (tensorboardX 2.6, wandb 0.2x): ``python make.py FOLDER``.

Run once, in an environment that has both; the tests read what it made.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tempfile
from pathlib import Path


def tensorboard(folder: Path) -> None:
    """Six steps of three scalars, and texts, which are no numbers."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as name:
        writer = SummaryWriter(name)
        for step in range(6):
            writer.add_scalar("train/loss", float("nan") if step == 4 else 2.0 - 0.125 * step, step)
            writer.add_scalar("train/learning_rate", 0.001, step)
            writer.add_scalar("reward", step * 0.5, step)
            writer.add_text("note", "x" * 50, step)
        writer.close()
        (made,) = Path(name).glob("*tfevents*")
        (folder / "tensorboard.gz").write_bytes(gzip.compress(made.read_bytes(), mtime=0))


def wandb(folder: Path) -> None:
    """The same, with a text that is longer than a block of the file."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    import wandb as library

    with tempfile.TemporaryDirectory() as name:
        quiet = library.Settings(console="off", disable_git=True, disable_code=True, x_disable_stats=True)
        run = library.init(project="p", dir=name, settings=quiet)
        for step in range(6):
            loss = float("nan") if step == 4 else 2.0 - 0.125 * step
            run.log({"train/loss": loss, "lr": 0.001, "val": {"acc": 0.5}, "text": "x" * (33_000 if step == 3 else 1)})
        run.finish()
        (made,) = Path(name).rglob("*.wandb")
        (folder / "wandb.gz").write_bytes(gzip.compress(made.read_bytes(), mtime=0))
        shutil.rmtree(name, ignore_errors=True)


if __name__ == "__main__":
    tensorboard(Path(sys.argv[1]))
    wandb(Path(sys.argv[1]))
