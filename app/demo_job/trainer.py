"""Mixed-precision training of the demo's language model, one step at a time.

What is as in a mixed-precision loop on a GPU: float32 master weights; the loss is multiplied by a loss scale before
backward; every parameter's gradient is kept in **float16**; the optimiser takes the scale off again in float32. What
is missing on purpose: the loss scale is static, and no step is skipped when a gradient has overflowed. So after the
learning rate is multiplied by ``kick_factor`` at ``kick_step``, the weights grow until a scaled gradient no longer
fits into float16 (65,504), and the first non-finite number is one that the conversion made, in one parameter or a
few, of which backward came to one first.

Everything is a function of the configuration: the same seed gives the same numbers on the same machine and numpy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.demo_job.corpus import Corpus
from app.demo_job.layers import Floats, Tokens
from app.demo_job.model import LanguageModel, ModelConfig

KICK_STEP_FIRST, KICK_STEP_LAST = 420, 620
"""Bounds of a kick step drawn from the seed: late enough for 400 healthy steps, early enough for a demo of seconds."""
KICK_FACTOR_FIRST, KICK_FACTOR_LAST = 30, 90
"""Bounds of a kick factor drawn from the seed. docs/demo.md has the measurements that these come from."""

_WEIGHTS_STREAM, _BATCHES_STREAM, _KICK_STREAM = 0, 1, 2


@dataclass(frozen=True)
class TrainingConfig:
    """One run. ``kick_factor`` 1 is a run without a kick; ``warmup_steps`` ramps the learning rate up from zero."""

    seed: int
    rank: int
    kick_step: int
    kick_factor: float
    batch: int = 24
    context: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    warmup_steps: int = 20
    loss_scale: float = 65536.0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of ``step`` (from 0)."""
        ramp = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * ramp * (self.kick_factor if step >= self.kick_step else 1.0)


@dataclass(frozen=True)
class StepResult:
    """What one step gave.

    ``loss`` is in nats a character; ``grad_norm`` is the L2 norm of all gradients, scale taken off, from the float16
    values and so infinite or NaN when one of them is; ``nonfinite`` counts the float16 elements that are not finite
    and ``first_nonfinite`` names the first parameter that has one, in the order of backward (None: there is none).
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    nonfinite: int
    first_nonfinite: str | None

    @property
    def is_bad(self) -> bool:
        """Whether the loss or any gradient element is not finite."""
        return self.nonfinite > 0 or not np.isfinite(self.loss)


def draw_kick(seed: int) -> tuple[int, int]:
    """The kick's step and factor for a run that was given neither."""
    rng = np.random.default_rng([seed, _KICK_STREAM])
    step = rng.integers(KICK_STEP_FIRST, KICK_STEP_LAST, endpoint=True)
    factor = rng.integers(KICK_FACTOR_FIRST, KICK_FACTOR_LAST, endpoint=True)
    return int(step), int(factor)


class Trainer:
    """The model, its optimiser (SGD with momentum) and its data.

    ``gradients`` holds the last step's scaled float16 gradients by name, in the order in which backward produced
    them. Ranks start from the same weights and read different pieces of the text; nothing is reduced between them.
    """

    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config = config
        self.corpus = corpus
        self.next_step = 0
        self.gradients: dict[str, NDArray[np.float16]] = {}
        sizes = ModelConfig(vocabulary=len(corpus.characters), context=config.context)
        self.model = LanguageModel(sizes, np.random.default_rng([config.seed, _WEIGHTS_STREAM]))
        self._batches = np.random.default_rng([config.seed, _BATCHES_STREAM, config.rank])
        self._velocity: dict[str, Floats] = {name: np.zeros_like(p) for name, p in self.model.params.items()}

    @property
    def tokens_per_step(self) -> int:
        """Characters that one step trains on."""
        return self.config.batch * self.config.context

    def next_batch(self) -> tuple[Tokens, Tokens]:
        """The inputs and targets that come next; each call moves on."""
        return self.corpus.batch(self._batches, self.config.batch, self.config.context)

    def step(self) -> StepResult:
        """One step: forward, backward, gradients to float16, update. Non-finite numbers are results, not errors."""
        step, self.next_step = self.next_step, self.next_step + 1
        learning_rate = self.config.learning_rate_at(step)
        # Overflow and NaN are what this job is for: they are counted below, so numpy need not warn of them.
        with np.errstate(over="ignore", invalid="ignore"):
            loss = self.model.forward(*self.next_batch())
            backward = self.model.backward(self.config.loss_scale)
            self.gradients = {name: grad.astype(np.float16) for name, grad in backward}
            square_sum = self._update(learning_rate)
        nonfinite, first_nonfinite = count_nonfinite(self.gradients)
        return StepResult(step, loss, float(np.sqrt(square_sum)), learning_rate, nonfinite, first_nonfinite)

    def _update(self, learning_rate: float) -> np.float32:
        """Apply the gradients to the master weights; returns the sum of their squares, scale taken off."""
        square_sum = np.float32(0)
        for name, kept in self.gradients.items():
            grad = kept.astype(np.float32) / np.float32(self.config.loss_scale)
            square_sum += np.sum(grad * grad)
            velocity = self._velocity[name]
            velocity *= np.float32(self.config.momentum)
            velocity += grad
            self.model.params[name] -= np.float32(learning_rate) * velocity
        return square_sum


def count_nonfinite(gradients: dict[str, NDArray[np.float16]]) -> tuple[int, str | None]:
    """How many elements of ``gradients`` are not finite, and the name of the first entry that has one."""
    counts = {name: grad.size - int(np.isfinite(grad).sum()) for name, grad in gradients.items()}
    return sum(counts.values()), next((name for name, count in counts.items() if count > 0), None)
