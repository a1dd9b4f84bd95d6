"""Forward and backward of each layer of the demo's language model, written out by hand in numpy.

Every function is pure: arrays in, arrays out, in the float type of the arrays (float32 when the job trains, float64
when the tests compare the backward pass with finite differences). Shapes: B batch, T context, D width, H heads, F
hidden width of the MLP, V vocabulary. A ``*_backward`` is given the gradient of the loss by its layer's output and
returns the gradients by its inputs, in the order of its inputs.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Tokens: TypeAlias = NDArray[np.int64]

NORM_EPSILON = 1e-5
"""Added to the mean square before its root, so that a row of zeros has a finite inverse."""


def linear_backward(grad: Floats, x: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Gradients of ``y = x @ weight`` by ``x`` ([..., in]) and by ``weight`` ([in, out])."""
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return grad @ weight.T, rows.T @ grad_rows


def bias_backward(grad: Floats) -> Floats:
    """Gradient of ``y = x + bias`` by ``bias`` ([out]): the sum over all rows."""
    return np.asarray(grad.reshape(-1, grad.shape[-1]).sum(axis=0))


def rms_norm(x: Floats, gain: Floats) -> tuple[Floats, Floats]:
    """``x`` divided by the root of the mean square of its last axis, times ``gain`` ([D]); also that inverse root."""
    inverse = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
    return x * inverse * gain, inverse


def rms_norm_backward(grad: Floats, x: Floats, gain: Floats, inverse: Floats) -> tuple[Floats, Floats]:
    """Gradients of :func:`rms_norm` by ``x`` and by ``gain``."""
    normed = x * inverse
    grad_normed = grad * gain
    shared = np.mean(grad_normed * normed, axis=-1, keepdims=True)
    return inverse * (grad_normed - normed * shared), bias_backward(grad * normed)


def relu_squared(x: Floats) -> Floats:
    """``max(x, 0) ** 2``, the activation of the MLP."""
    positive = np.maximum(x, 0)
    return np.asarray(positive * positive)


def relu_squared_backward(grad: Floats, x: Floats) -> Floats:
    """Gradient of :func:`relu_squared` by ``x``."""
    return np.asarray(grad * 2 * np.maximum(x, 0))


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis, with the row's maximum taken off first so that ``exp`` cannot overflow."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def split_heads(x: Floats, heads: int) -> Floats:
    """[B, T, D] to [B, H, T, D / H]."""
    batch, context, width = x.shape
    return x.reshape(batch, context, heads, width // heads).transpose(0, 2, 1, 3)


def join_heads(x: Floats) -> Floats:
    """[B, H, T, D / H] to [B, T, D]."""
    batch, heads, context, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, context, heads * width)


def attention(query: Floats, key: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Causal attention over [B, H, T, D / H]; also the attention weights ([B, H, T, T])."""
    context = query.shape[2]
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    future = np.triu(np.ones((context, context), dtype=bool), k=1)
    weights = softmax(np.where(future, -np.inf, scores))
    return weights @ value, weights


def attention_backward(
    grad: Floats, query: Floats, key: Floats, value: Floats, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    """Gradients of :func:`attention` by ``query``, ``key`` and ``value``."""
    grad_weights = grad @ value.swapaxes(-1, -2)
    shared = (grad_weights * weights).sum(axis=-1, keepdims=True)
    grad_scores = weights * (grad_weights - shared) / math.sqrt(query.shape[-1])
    return grad_scores @ key, grad_scores.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ grad


def cross_entropy(logits: Floats, targets: Tokens) -> tuple[float, Floats]:
    """Mean negative log-likelihood (nats a token) of ``targets`` [B, T], and the probabilities [B, T, V].

    The log of the softmax is computed as a difference (log-sum-exp), never as the log of a probability that has
    underflowed to zero: a model that is certain and wrong has a large loss, not an infinite one.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None], axis=-1)
    return float(np.mean(np.log(totals) - chosen)), exponentials / totals


def cross_entropy_backward(probabilities: Floats, targets: Tokens) -> Floats:
    """Gradient of :func:`cross_entropy` by the logits."""
    grad = probabilities.copy()
    np.put_along_axis(grad, targets[..., None], np.take_along_axis(grad, targets[..., None], axis=-1) - 1, axis=-1)
    return np.asarray(grad / targets.size)
