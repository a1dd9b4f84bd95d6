"""For Hugging Face's ``Trainer``::

    from nantucket.huggingface import NantucketCallback

    trainer = Trainer(model, args, train_dataset=data, callbacks=[NantucketCallback(job="leviathan-7b")])

Every optimizer step is a row, numbered as ``trainer_state.json`` numbers it. The loss is that of the step, taken from
the model itself: what ``Trainer`` logs is an average over ``logging_steps`` in which a NaN is hidden.
"""

from __future__ import annotations

import inspect
import os
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

import nantucket
from nantucket._run import Run

NOT_METRICS = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos"})


class NantucketCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not where types are checked
    """Reports a ``Trainer``'s steps, evaluations and checkpoints.

    ``job`` and the other keywords are those of :func:`nantucket.init`; rank and world size are the trainer's.
    ``layers_every`` and ``update_every`` are those of :meth:`nantucket.Run.watch`. With ``on_divergence`` the callback
    heeds verdicts at the end of each step.
    """

    def __init__(self, job: str, *, layers_every: int = 0, update_every: int = 10, **options: Any) -> None:
        self._job, self._options = job, options
        self._watching: dict[str, Any] = {"layers_every": layers_every, "update_every": update_every}
        self.run: Run | None = None
        """What reports, while the trainer trains."""
        self._evaluation = ExitStack()
        self._evaluating = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Start the run, and watch the model."""
        options = {"rank": args.process_index, "world_size": args.world_size, **self._options}
        self.run = nantucket.init(self._job, **options)
        model, optimizer = given.get("model"), given.get("optimizer")
        watch = self.run.watch(
            model,
            getattr(optimizer, "optimizer", optimizer),  # what Accelerate has wrapped
            scaler=getattr(optimizer, "scaler", None),
            first_step=state.global_step + 1,
            **self._watching,
        )
        if watch is not None:
            # As Trainer has it: a model that is told the number of items gives its part of the step's loss.
            watch.losses_add = args.gradient_accumulation_steps > 1 and _takes_items(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A step of the optimizer."""
        if self.run is None:
            return
        optimizer = given.get("optimizer")
        lr = None if optimizer is None else optimizer.param_groups[0]["lr"]
        self.run.log(step=state.global_step, lr=lr, epoch=state.epoch)
        self.run.heed(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """What the trainer logs besides, as metrics; an evaluation's as ``eval/...``."""
        if self.run is None or not logs:
            return
        metrics = {
            "eval/" + name[5:] if name.startswith("eval_") else name: value
            for name, value in logs.items()
            if name not in NOT_METRICS and isinstance(value, (int, float))
        }
        if metrics:
            self.run.log(metrics, step=state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The first of an evaluation begins its phase."""
        if self.run is not None and not self._evaluating:
            self._evaluating = True
            self._evaluation.enter_context(self.run.phase("eval"))

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The evaluation is over."""
        self._evaluating = False
        self._evaluation.close()

    on_predict = on_evaluate

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A checkpoint is complete."""
        if self.run is not None and state.is_world_process_zero:
            self.run.checkpoint(state.global_step, os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The training is over."""
        self.on_evaluate(args, state, control)
        if self.run is not None:
            self.run.finish()


def _takes_items(model: Any) -> bool:
    """Whether ``model`` scales its loss by the step's items when it is told their number."""
    said = getattr(model, "accepts_loss_kwargs", None)
    if said is not None:
        return bool(said)
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
