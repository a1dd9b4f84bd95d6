"""For Lightning's ``Trainer`` (``lightning`` or ``pytorch_lightning``)::

    from nantucket.lightning import NantucketCallback

    trainer = Trainer(callbacks=[NantucketCallback(job="leviathan-7b")])

Every optimizer step is a row, numbered as ``trainer.global_step`` is behind it.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import nantucket
from nantucket._run import Run

if "lightning" in sys.modules or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback


class NantucketCallback(Callback):  # type: ignore[misc]  # Lightning is not where types are checked
    """Reports a ``Trainer``'s steps, validations and checkpoints.

    ``job`` and the other keywords are those of :func:`nantucket.init`; rank and world size are the trainer's.
    ``layers_every`` and ``update_every`` are those of :meth:`nantucket.Run.watch`. With ``on_divergence`` the callback
    heeds verdicts at the end of each step.
    """

    def __init__(self, job: str, *, layers_every: int = 0, update_every: int = 10, **options: Any) -> None:
        super().__init__()
        self._job, self._options = job, options
        self._watching: dict[str, Any] = {"layers_every": layers_every, "update_every": update_every}
        self.run: Run | None = None
        """What reports, while the trainer fits."""
        self._losses: list[Any] = []
        self._validation = ExitStack()
        self._saved: int | None = None
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the run, and watch the model: by now it is wrapped and has its optimizers."""
        options = {"rank": trainer.global_rank, "world_size": trainer.world_size, **self._options}
        self.run = nantucket.init(self._job, **options)
        self._step = trainer.global_step
        self.run.watch(
            trainer.model if trainer.model is not None else pl_module,
            trainer.optimizers[0] if trainer.optimizers else None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            first_step=self._step + 1,
            **self._watching,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch; where it ended a step of the optimizer, the step."""
        if self.run is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._losses.append(loss.detach())
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        mean = sum(self._losses[1:], self._losses[0]) / len(self._losses) if self._losses else None
        self._losses = []
        lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
        self.run.log(step=self._step, loss=mean, lr=lr, epoch=trainer.current_epoch)
        self._tell_saved(trainer)
        self.run.heed(self._step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A validation begins its phase."""
        if self.run is not None:
            self._validation.enter_context(self.run.phase("eval"))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """What a validation came to, as metrics ``eval/...``."""
        self._validation.close()
        if self.run is not None:
            metrics = {f"eval/{name}": value for name, value in trainer.callback_metrics.items() if "train" not in name}
            if metrics:
                self.run.log(metrics, step=self._step)
            self._tell_saved(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """A checkpoint is about to be written; it is told once it is complete."""
        self._saved = trainer.global_step

    def _tell_saved(self, trainer: Any) -> None:
        saved, self._saved = self._saved, None
        if self.run is None or saved is None or trainer.global_rank != 0:
            return
        keeper = trainer.checkpoint_callback
        path = None if keeper is None else keeper.last_model_path or keeper.best_model_path or None
        self.run.checkpoint(saved, path)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The training has failed."""
        if self.run is not None:
            self.run.__exit__(type(exception), exception, exception.__traceback__)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """The training is over."""
        if self.run is not None:
            self._tell_saved(trainer)
            self.run.finish()
