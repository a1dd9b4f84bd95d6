"""A small character-level language model in numpy: a decoder with causal attention, and its backward pass by hand.

Embeddings of characters and positions, then blocks of (RMS norm, causal attention, RMS norm, MLP with squared ReLU)
around a residual stream, a last norm with a fixed gain and a linear head with a bias. There is no automatic
differentiation: :meth:`LanguageModel.backward` walks the layers from the loss to the embeddings and *yields* each
parameter's gradient at the moment it is complete. That order is what "the first parameter with a non-finite gradient"
means in this job.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from app.demo_job import layers
from app.demo_job.layers import Floats, Tokens

LAST_NORM = 0.5
"""What the last norm's output is multiplied by. At 1, four kicks in five overflow in the head first; at 0.35, a quarter
of the kicks overflow nowhere within 60 steps. Both are measured, over kicks by 20 to 100; docs/demo.md has 0.5."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. ``width`` must be a multiple of ``heads``; ``hidden`` is the inner width of the MLP."""

    vocabulary: int
    context: int = 32
    width: int = 64
    heads: int = 2
    blocks: int = 3
    hidden: int = 192

    def __post_init__(self) -> None:
        assert self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}"


class LanguageModel:
    """The parameters, by name, and the two passes over them.

    ``params`` maps names such as ``blocks.1.mlp.w2`` to arrays; an optimiser updates them in place. ``forward`` keeps
    what ``backward`` needs, so the two are called in turn: one forward, one backward.
    """

    def __init__(self, config: ModelConfig, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> None:
        self.config = config
        self.params: dict[str, Floats] = {name: array.astype(dtype) for name, array in _initial(config, rng)}
        self._kept: dict[str, Any] = {}
        self._tokens: Tokens = np.zeros((0, 0), dtype=np.int64)
        self._targets: Tokens = np.zeros((0, 0), dtype=np.int64)

    @property
    def parameter_count(self) -> int:
        """Elements of all parameters together."""
        return sum(array.size for array in self.params.values())

    def forward(self, tokens: Tokens, targets: Tokens) -> float:
        """Mean loss (nats a character) of predicting ``targets`` from ``tokens``, both [B, T]."""
        self._tokens, self._targets = tokens, targets
        x: Floats = self.params["embedding.token"][tokens] + self.params["embedding.position"][: tokens.shape[1]]
        for block in range(self.config.blocks):
            x = self._attention(f"blocks.{block}.", x)
            x = self._mlp(f"blocks.{block}.", x)
        normed, inverse = layers.rms_norm(x, np.full_like(x[0, 0], LAST_NORM))
        self._kept["head"] = (x, inverse, normed)
        logits = normed @ self.params["head.weight"] + self.params["head.bias"]
        loss, self._kept["probabilities"] = layers.cross_entropy(logits, targets)
        return loss

    def backward(self, loss_scale: float) -> Iterator[tuple[str, Floats]]:
        """Yield (name, gradient of ``loss_scale`` times the loss) for every parameter, as backward produces them."""
        x, inverse, normed = self._kept["head"]
        grad = layers.cross_entropy_backward(self._kept["probabilities"], self._targets)
        grad *= loss_scale
        yield "head.bias", layers.bias_backward(grad)
        grad, grad_weight = layers.linear_backward(grad, normed, self.params["head.weight"])
        yield "head.weight", grad_weight
        grad, _ = layers.rms_norm_backward(grad, x, np.full_like(x[0, 0], LAST_NORM), inverse)
        for block in reversed(range(self.config.blocks)):
            grad = yield from self._mlp_backward(f"blocks.{block}.", grad)
            grad = yield from self._attention_backward(f"blocks.{block}.", grad)
        yield from self._embedding_backward(grad)

    def _norm(self, name: str, x: Floats) -> Floats:
        normed, inverse = layers.rms_norm(x, self.params[name])
        self._kept[name] = (x, inverse)
        return normed

    def _norm_backward(self, name: str, grad: Floats) -> tuple[Floats, Floats]:
        x, inverse = self._kept[name]
        return layers.rms_norm_backward(grad, x, self.params[name], inverse)

    def _attention(self, at: str, x: Floats) -> Floats:
        normed = self._norm(at + "attention.norm", x)
        heads = self.config.heads
        query, key, value = (
            layers.split_heads(part, heads) for part in np.split(normed @ self.params[at + "attention.qkv"], 3, axis=-1)
        )
        mixed, weights = layers.attention(query, key, value)
        joined = layers.join_heads(mixed)
        self._kept[at + "attention"] = (normed, query, key, value, weights, joined)
        return x + joined @ self.params[at + "attention.out"]

    def _attention_backward(self, at: str, grad: Floats) -> Generator[tuple[str, Floats], None, Floats]:
        normed, query, key, value, weights, joined = self._kept[at + "attention"]
        grad_joined, grad_out = layers.linear_backward(grad, joined, self.params[at + "attention.out"])
        yield at + "attention.out", grad_out
        parts = layers.attention_backward(
            layers.split_heads(grad_joined, self.config.heads), query, key, value, weights
        )
        grad_qkv = np.concatenate([layers.join_heads(part) for part in parts], axis=-1)
        grad_normed, grad_weight = layers.linear_backward(grad_qkv, normed, self.params[at + "attention.qkv"])
        yield at + "attention.qkv", grad_weight
        grad_x, grad_gain = self._norm_backward(at + "attention.norm", grad_normed)
        yield at + "attention.norm", grad_gain
        return grad + grad_x

    def _mlp(self, at: str, x: Floats) -> Floats:
        normed = self._norm(at + "mlp.norm", x)
        hidden = normed @ self.params[at + "mlp.w1"] + self.params[at + "mlp.b1"]
        active = layers.relu_squared(hidden)
        self._kept[at + "mlp"] = (normed, hidden, active)
        return x + (active @ self.params[at + "mlp.w2"] + self.params[at + "mlp.b2"])

    def _mlp_backward(self, at: str, grad: Floats) -> Generator[tuple[str, Floats], None, Floats]:
        normed, hidden, active = self._kept[at + "mlp"]
        yield at + "mlp.b2", layers.bias_backward(grad)
        grad_active, grad_w2 = layers.linear_backward(grad, active, self.params[at + "mlp.w2"])
        yield at + "mlp.w2", grad_w2
        grad_hidden = layers.relu_squared_backward(grad_active, hidden)
        yield at + "mlp.b1", layers.bias_backward(grad_hidden)
        grad_normed, grad_w1 = layers.linear_backward(grad_hidden, normed, self.params[at + "mlp.w1"])
        yield at + "mlp.w1", grad_w1
        grad_x, grad_gain = self._norm_backward(at + "mlp.norm", grad_normed)
        yield at + "mlp.norm", grad_gain
        return grad + grad_x

    def _embedding_backward(self, grad: Floats) -> Iterator[tuple[str, Floats]]:
        position = np.zeros_like(self.params["embedding.position"])
        position[: grad.shape[1]] = grad.sum(axis=0)
        yield "embedding.position", position
        token = np.zeros_like(self.params["embedding.token"])
        np.add.at(token, self._tokens.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        yield "embedding.token", token


def _initial(config: ModelConfig, rng: np.random.Generator) -> Iterator[tuple[str, Floats]]:
    """Initial parameters: normal weights of variance 1/inputs, smaller where a block adds to the residual stream."""
    width, hidden = config.width, config.hidden
    shrink = 1.0 / np.sqrt(2.0 * config.blocks)

    def weight(rows: int, columns: int, factor: float = 1.0) -> Floats:
        return np.asarray(rng.standard_normal((rows, columns)) * (factor / np.sqrt(rows)))

    yield "embedding.token", rng.standard_normal((config.vocabulary, width)) * 0.1
    yield "embedding.position", rng.standard_normal((config.context, width)) * 0.1
    for block in range(config.blocks):
        at = f"blocks.{block}."
        yield at + "attention.norm", np.ones(width)
        yield at + "attention.qkv", weight(width, 3 * width)
        yield at + "attention.out", weight(width, width, shrink)
        yield at + "mlp.norm", np.ones(width)
        yield at + "mlp.w1", weight(width, hidden)
        yield at + "mlp.b1", np.zeros(hidden)
        yield at + "mlp.w2", weight(hidden, width, shrink)
        yield at + "mlp.b2", np.zeros(width)
    yield "head.weight", weight(width, config.vocabulary, 0.5)
    yield "head.bias", np.zeros(config.vocabulary)
