"""A data-parallel job of PyTorch on several processes of this machine, by torchrun: ``ddp.py '{"steps": 30, ...}'``.

Each rank prints what it saw as JSON lines. What goes wrong is in the argument: ``bad_rank``, ``bad_step``,
``bad_parameter`` (by number), ``how``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import nantucket

WISH = json.loads(sys.argv[1])
HOW = WISH.get("how", "nan")
STEPS, BAD_STEP, BAD_RANK = WISH.get("steps", 30), WISH.get("bad_step", -1), WISH.get("bad_rank", 0)


def say(**what: object) -> None:
    """Print a line of JSON, whole: the ranks share the output."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def next_batch(step: int, rank: int) -> torch.Tensor:
    """Return this rank's own data; one rank waits for ever where that is wished."""
    if HOW == "stuck" and (step, rank) == (BAD_STEP, BAD_RANK):
        time.sleep(3600)
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(32, 16, generator=generator)


def poison(parameters: list[Any], rank: int, step: int) -> list[Any]:
    """Have one parameter's gradient be NaN on one rank, before anything is reduced."""
    if HOW in ("stuck", "fsdp") or (step, rank) != (BAD_STEP, BAD_RANK):
        return []

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        return grad * math.nan

    return [parameters[WISH["bad_parameter"]].register_hook(spoil)]


def agree(mine: tuple[int, int, int]) -> list[int]:
    """The greatest of each number over all ranks."""
    numbers = torch.tensor(mine)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def sharded(net: nn.Module) -> nn.Module:
    """Spread the parameters over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def main() -> None:
    """Train."""
    torch.manual_seed(3)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    model = sharded(net) if HOW == "fsdp" else DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    kept = Path(WISH["folder"]) / "good.pt" if "folder" in WISH else None
    first = 0
    if kept is not None and kept.exists():
        saved = torch.load(kept, weights_only=True)
        net.load_state_dict(saved["net"])
        first = saved["step"] + 1
    wish = {"on_divergence": "raise", "agree": agree} if HOW == "diverge" else {}
    status = 0
    with nantucket.init("ddp", attempt=WISH.get("attempt", "1"), **wish) as run:
        if HOW != "reduced":
            run.watch(model, optimizer)
        try:
            train(run, model, net, optimizer, rank, first, kept)
        except nantucket.Diverged as stopped:
            say(rank=rank, diverged=stopped.step, bad_step=stopped.bad_step)
            status = 3
    say(rank=rank, dropped=run.dropped, first=first)
    dist.destroy_process_group()
    sys.exit(status)


def train(run: Any, model: Any, net: Any, optimizer: Any, rank: int, first: int, kept: Path | None) -> None:
    """The loop."""
    parameters = list(net.parameters())
    for step in range(first, STEPS):
        begin = time.monotonic()
        batch = next_batch(step, rank)
        hooks = poison(parameters, rank, step)
        loss = model(batch).square().mean()
        if HOW == "fsdp" and (step, rank) == (BAD_STEP, BAD_RANK):
            loss = loss * math.nan
        loss.backward()
        for hook in hooks:
            hook.remove()
        norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
        optimizer.step()
        optimizer.zero_grad()
        if HOW == "reduced":
            bad = 0 if math.isfinite(norm) else sum(parameter.numel() for parameter in parameters)
            run.log(step=step, loss=loss, grad_norm=norm, nonfinite=bad, scope="global")
        else:
            run.log(step=step, loss=loss)
        run.heed(step)
        if kept is not None and rank == 0 and step % 5 == 4 and math.isfinite(norm):
            torch.save({"net": net.state_dict(), "step": step}, kept)
            run.checkpoint(step, str(kept))
        say(rank=rank, step=step, loss=repr(loss.item()), seconds=time.monotonic() - begin)
        time.sleep(WISH.get("pause", 0.05))


if __name__ == "__main__":
    main()
