"""A real training with Hugging Face's ``Trainer``: ``hf_job.py FOLDER with|without [BAD_STEP]``. Prints its losses."""

from __future__ import annotations

import json
import sys

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from nantucket.huggingface import NantucketCallback


class Words(Dataset):
    """Numbers that stand for words."""

    def __len__(self) -> int:
        """Return how many there are."""
        return 48

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        """Return one text."""
        words = torch.arange(16) * (at % 5 + 1) % 64
        return {"input_ids": words, "labels": words}


class Spoil(TrainerCallback):
    """Makes one gradient bad at one step."""

    def __init__(self, step: int) -> None:
        self.step, self.hook = step, None

    def on_step_begin(self, args, state, control, model=None, **given):
        """Before the step."""
        if state.global_step + 1 == self.step:
            weight = model.transformer.h[0].mlp.c_fc.weight
            self.hook = weight.register_hook(lambda grad: grad * float("nan"))

    def on_step_end(self, args, state, control, **given):
        """Behind it."""
        if self.hook is not None:
            self.hook.remove()


def main() -> None:
    """Train, and say what the model's own losses were."""
    folder, watched = sys.argv[1:3]
    torch.manual_seed(4)
    torch.set_num_threads(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    args = TrainingArguments(
        output_dir=folder,
        max_steps=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        save_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [NantucketCallback("hf", attempt="a", layers_every=5)] if watched == "with" else []
    if len(sys.argv) > 3:
        callbacks.append(Spoil(int(sys.argv[3])))
    trainer = Trainer(model, args, train_dataset=Words(), eval_dataset=Words(), callbacks=callbacks)
    trainer.train()
    for logged in trainer.state.log_history:
        if "loss" in logged:
            print(json.dumps({"step": logged["step"], "loss": repr(logged["loss"]), "norm": repr(logged["grad_norm"])}))
    print(json.dumps({"weights": repr(sum(p.double().sum().item() for p in model.parameters()))}))


if __name__ == "__main__":
    main()
