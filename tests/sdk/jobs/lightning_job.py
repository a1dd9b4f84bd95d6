"""A real training with Lightning: ``lightning_job.py FOLDER with|without [BAD_STEP]``. Prints its losses."""

from __future__ import annotations

import json
import sys

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from nantucket.lightning import NantucketCallback


class Line(pl.LightningModule):
    """A small regression."""

    def __init__(self, bad_step: int) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.bad_step = bad_step
        self.losses: list[float] = []

    def training_step(self, batch, _at):
        """One batch."""
        (given,) = batch
        loss = self.net(given).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, _at):
        """One batch of the validation."""
        (given,) = batch
        self.log("val_loss", self.net(given).square().mean())

    def on_before_backward(self, _loss):
        """Make a gradient bad at one step."""
        if self.global_step + 1 == self.bad_step:
            self.hook = self.net[0].weight.register_hook(lambda grad: grad * float("nan"))

    def on_after_backward(self):
        """And no longer."""
        if self.global_step + 1 == self.bad_step:
            self.hook.remove()

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> None:
    """Train."""
    folder, watched = sys.argv[1:3]
    pl.seed_everything(5, verbose=False)
    torch.set_num_threads(1)
    model = Line(int(sys.argv[3]) if len(sys.argv) > 3 else -1)
    callbacks = [NantucketCallback("pl", attempt="a")] if watched == "with" else []
    trainer = pl.Trainer(
        max_steps=10,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
    )
    given = DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=8)
    trainer.fit(model, given, given)
    print(json.dumps({"losses": [repr(loss) for loss in model.losses]}))


if __name__ == "__main__":
    main()
