"""Statistics of gradients in a few kernels, whatever the number of parameters: PyTorch's fused foreach norms.

Two passes over the gradients: the greatest magnitude, which is finite exactly if every element is, and the 2-norm, in
float32 whatever the gradients' type, so that half precision does not overflow. What they cost on a GPU is reading the
gradients twice: 4 bytes of memory traffic for an element in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from nantucket._readback import Readback

CHUNK_ELEMENTS = 1 << 25
"""Elements of the optimizer's state that are worked on at once: two temporary copies of 128 MiB in float32."""
UNCOUNTED = -1


class Part(NamedTuple):
    """Gradients of one device and type. ``places`` says where each stands in the order of the backward pass."""

    places: list[int]
    norms: Readback
    """``(2, gradients)`` float32: 2-norms, and what is finite exactly if every element is: the greatest magnitudes."""
    counts: Readback | None
    """``(gradients,)`` int64: elements that are not finite; ``None`` where they were not counted."""


class Piece(NamedTuple):
    """What one backward pass, or a part of it, has left. ``indices``: whose gradients, in the order they came."""

    indices: list[int]
    parts: list[Part]
    is_local: bool
    """Whether the gradients are those of this rank alone, before any reduction."""

    @property
    def ready(self) -> bool:
        """Whether the devices are done with it."""
        return all(part.norms.ready and (part.counts is None or part.counts.ready) for part in self.parts)

    def numbers(self, torch: Any) -> tuple[Any, Any, Any]:
        """2-norms, what is finite where every element is, and counts, all in the order of ``indices``."""
        norms = torch.zeros((2, len(self.indices)))
        counts = torch.full((len(self.indices),), UNCOUNTED, dtype=torch.int64)
        for part in self.parts:
            if len(self.parts) == 1 and part.counts is None:
                return part.norms.values[0], part.norms.values[1], counts
            places = torch.tensor(part.places)
            norms[:, places] = part.norms.values
            if part.counts is not None:
                counts[places] = part.counts.values
        return norms[0], norms[1], counts


def local(tensor: Any) -> Any:
    """This rank's own elements of a tensor that is spread over ranks (a ``DTensor``), else the tensor."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def gradient_of(parameter: Any) -> Any:
    """A parameter's gradient, where training keeps it: ``.grad``, or Megatron-LM's ``.main_grad``; else ``None``."""
    grad = parameter.grad
    if grad is None:
        grad = getattr(parameter, "main_grad", None)
    return None if grad is None or grad.is_sparse else local(grad)


def measure(torch: Any, indices: list[int], gradients: Sequence[Any], is_local: bool, count: bool) -> Piece:
    """Norms of ``gradients``, one for each of ``indices``. ``count``: elements too, at three kernels a gradient.

    On the CPU a finite 2-norm is known at once, and proves as much as the second pass; what is not is counted.
    """
    parts = []
    for places in _alike(gradients):
        group = [gradients[place] for place in places]
        norms = greatest = torch.stack(_norms(torch, group, 2))
        on_host = group[0].device.type == "cpu"
        if not (on_host and bool(torch.isfinite(norms).all())):
            greatest = torch.stack(_norms(torch, group, math.inf))
        counted = count or (on_host and not bool(torch.isfinite(greatest).all()))
        counts = Readback(torch, _not_finite(torch, group)) if counted else None
        parts.append(Part(places, Readback(torch, torch.stack([norms, greatest])), counts))
    return Piece(indices, parts, is_local)


def _alike(gradients: Sequence[Any]) -> list[list[int]]:
    """Places of the gradients by device and type: what one fused kernel takes."""
    groups: dict[tuple[Any, Any], list[int]] = {}
    for place, gradient in enumerate(gradients):
        groups.setdefault((gradient.device, gradient.dtype), []).append(place)
    return list(groups.values())


def _norms(torch: Any, tensors: list[Any], order: float) -> list[Any]:
    """A scalar in float32 for each tensor. An empty one has the norm 0."""
    if all(tensor.numel() for tensor in tensors):
        return list(torch._foreach_norm(tensors, order, dtype=torch.float32))
    zero = torch.zeros((), device=tensors[0].device)
    return [_norms(torch, [tensor], order)[0] if tensor.numel() else zero for tensor in tensors]


def _not_finite(torch: Any, tensors: list[Any]) -> Any:
    """How many elements of each tensor are NaN or infinite."""
    return torch.stack([torch.count_nonzero(~torch.isfinite(tensor)) for tensor in tensors])


def update_norm(torch: Any, optimizer: Any) -> Readback | None:
    """The 2-norm of what the optimizer's last step changed, weight decay aside, from the state that it left.

    For the Adam family it is ``lr * m / (sqrt(v) + eps)`` with both moments corrected for their start (Kingma and Ba,
    2014, algorithm 1); for SGD ``lr`` times the momentum buffer. ``None`` for another optimizer.
    """
    squares = []
    for group in optimizer.param_groups:
        kind = _kind(optimizer, group)
        if kind is None:
            return None
        for members in _chunks([parameter for parameter in group["params"] if parameter in optimizer.state]):
            squares += kind(torch, group, [optimizer.state[parameter] for parameter in members])
    if not squares:
        return None
    device = squares[0].device
    return Readback(torch, torch.stack([square.to(device, non_blocking=True) for square in squares]).sum().sqrt())


def _kind(optimizer: Any, group: dict[str, Any]) -> Any:
    names = {base.__name__ for base in type(optimizer).__mro__}
    if names & {"Adam", "AdamW", "NAdam", "RAdam"} and not group.get("amsgrad"):
        return _adam
    if "SGD" in names and group.get("momentum") and not group.get("nesterov"):
        return _momentum
    return None


def _chunks(parameters: list[Any]) -> list[list[Any]]:
    chunks: list[list[Any]] = []
    kinds: dict[tuple[Any, Any], tuple[list[Any], int]] = {}
    for parameter in parameters:
        key = (parameter.device, parameter.dtype)
        members, size = kinds.get(key, ([], CHUNK_ELEMENTS))
        if size + parameter.numel() > CHUNK_ELEMENTS:
            members, size = [], 0
            chunks.append(members)
        members.append(parameter)
        kinds[key] = (members, size + parameter.numel())
    return chunks


def _adam(torch: Any, group: dict[str, Any], states: list[dict[str, Any]]) -> list[Any]:
    states = [state for state in states if "exp_avg_sq" in state]
    if not states:
        return []
    first, second = group["betas"]
    step = states[0]["step"]
    # A step on the GPU (capturable, fused) stays there: reading it would wait.
    root = torch.sqrt(1 - second**step) if hasattr(step, "dtype") else math.sqrt(1 - second**step)
    scale = group["lr"] / (1 - first**step)
    below = torch._foreach_sqrt([local(state["exp_avg_sq"]).float() for state in states])
    torch._foreach_div_(below, root)
    torch._foreach_add_(below, group["eps"])
    moved = torch._foreach_div([local(state["exp_avg"]).float() for state in states], below)
    total = torch.stack(_norms(torch, list(moved), 2)).square().sum()
    return [total * (scale * scale)]


def _momentum(torch: Any, group: dict[str, Any], states: list[dict[str, Any]]) -> list[Any]:
    buffers = [local(state["momentum_buffer"]) for state in states if state.get("momentum_buffer") is not None]
    if not buffers:
        return []
    return [torch.stack(_norms(torch, buffers, 2)).square().sum() * group["lr"] ** 2]
