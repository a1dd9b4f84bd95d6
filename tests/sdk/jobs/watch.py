"""Small real trainings on PyTorch with ``run.watch``: ``watch.py [--off] SCENE...``; each is a job of its name.

What PyTorch itself says of every step is printed.
"""

from __future__ import annotations

import copy
import io
import json
import math
import sys
from typing import Any

import torch
from torch import nn

import nantucket

STEPS = 12
BAD_STEP = 7


def model() -> nn.Module:
    """Return a small network; the same numbers each time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 1))


class Tied(nn.Module):
    """A model like those that say their loss, with a frozen part and one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.frozen, self.idle = model(), nn.Linear(3, 3), nn.Linear(5, 5)
        self.frozen.requires_grad_(False)

    def forward(self, given: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss by its name."""
        return {"loss": self.body(given).square().mean()}


def poisoned(parameter: torch.Tensor, number: float, elements: int) -> Any:
    """Have the next gradient of ``parameter`` carry ``number`` in its first ``elements``."""

    def poison(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad.view(-1)[:elements] = number
        return grad

    return parameter.register_hook(poison)


def say(**what: object) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


def train(scene: str, run: Any, watched: bool) -> None:
    """Train for some steps in the manner of ``scene``."""
    net = Tied() if scene == "loss" else model()
    stepping = torch.compile(net, backend="aot_eager") if scene == "compile" else net
    kinds: dict[str, Any] = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}
    optimizer = kinds.get(scene, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0))(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scene == "scaler" else None
    if scene == "main_grad":
        keep_main_grads(net)
    handle = None
    if watched:
        layers = 5 if scene == "layers" else 0
        handle = run.watch(net, optimizer, scaler=scaler, layers_every=layers, update_every=1)
    for step in range(STEPS):
        say(scene=scene, **one_step(scene, step, net, stepping, optimizer, scaler, run))
        if scene == "adamw" and step == 5:
            copies(net)
        if scene == "closed" and step == 4 and handle is not None:
            handle.close()
            say(
                scene=scene,
                hooks=[bool(p._post_accumulate_grad_hooks) for p in net.parameters()],
                forward=len(net._forward_hooks),
            )


def copies(net: nn.Module) -> None:
    """A job copies its model (for an average of its weights) and saves it whole: neither copy is watched."""
    averaged = copy.deepcopy(net)
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    for other in (averaged, torch.load(saved, weights_only=False)):
        other(torch.zeros(2, 8)).mean().backward()


def one_step(
    scene: str, step: int, net: nn.Module, stepping: Any, optimizer: Any, scaler: Any, run: Any
) -> dict[str, Any]:
    """Make one step and return what it came to."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total = 0.0
    first = parameters[0] if scene != "loss" else net.body[0].weight
    for microbatch in range(3 if scene == "microbatches" else 1):
        loss = loss_of(stepping, torch.randn(16, 8))
        hook = None
        if step == BAD_STEP and microbatch == (1 if scene == "microbatches" else 0):
            hook = poison_of(scene, first)
        if scene == "broken" and step == 3:
            broken_backward(loss, net)
        (loss if scaler is None else scaler.scale(loss)).backward()
        total += loss.item()
        if hook is not None:
            hook.remove()
    if scene == "main_grad":
        return main_grad_step(step, parameters, optimizer, run, total)
    scale = 1.0 if scaler is None else scaler.get_scale()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item() / scale
    before = [parameter.detach().clone() for parameter in parameters]
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(parameters, before, strict=True)))
    if scene != "unlogged":
        run.log(step=step, loss=total, extra=step)
    optimizer.zero_grad()
    return {"step": step, "loss": repr(total), "grad_norm": repr(norm), "update_norm": repr(moved), "scale": scale}


def loss_of(stepping: Any, given: torch.Tensor) -> torch.Tensor:
    """The loss, whoever computes it."""
    out = stepping(given)
    return out["loss"] if isinstance(out, dict) else out.square().mean()


def poison_of(scene: str, parameter: torch.Tensor) -> Any:
    """What goes wrong at the bad step."""
    if scene == "overflow":
        return poisoned(parameter, 1e30, 4)
    return poisoned(parameter, math.inf if scene == "scaler" else math.nan, 5)


def broken_backward(loss: torch.Tensor, net: Any) -> None:
    """A backward pass that a hook of the job's own breaks off."""

    def fail(_grad: torch.Tensor) -> None:
        raise RuntimeError("broken off")

    hook = net[0].weight.register_hook(fail)
    try:
        loss.backward(retain_graph=True)
    except RuntimeError:
        hook.remove()


def main_grad_step(step: int, parameters: list[Any], optimizer: Any, run: Any, total: float) -> dict[str, Any]:
    """Megatron-LM's way: gradients are kept in ``main_grad``, in float32, and ``grad`` is given back."""
    norm = torch.nn.utils.get_total_norm([p.main_grad for p in parameters]).item()
    for parameter in parameters:
        parameter.grad = parameter.main_grad
    optimizer.step()
    run.log(step=step, loss=total)
    for parameter in parameters:
        parameter.grad = None
        parameter.main_grad = torch.zeros_like(parameter)
    return {"step": step, "loss": repr(total), "grad_norm": repr(norm)}


def keep_main_grads(net: nn.Module) -> None:
    """As Megatron-LM's DistributedDataParallel does it: behind each parameter's accumulation."""
    for parameter in net.parameters():
        parameter.main_grad = torch.zeros_like(parameter)

        def move(changed: torch.Tensor) -> None:
            changed.main_grad.add_(changed.grad)
            changed.grad = None

        parameter.register_post_accumulate_grad_hook(move)


def main() -> None:
    """Run the scenes."""
    for scene in sys.argv[1:]:
        if scene == "--off":
            continue
        torch.manual_seed(2)
        with nantucket.init(scene, attempt="a") as run:
            train(scene, run, "--off" not in sys.argv)
        say(scene=scene, dropped=run.dropped)


if __name__ == "__main__":
    main()
