"""Two ranks that say where they stand, and whether their replicas agree: ``standing.py mesh|megatron``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

import nantucket


def main() -> None:
    """Stand, log, end."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = None
    if sys.argv[1] == "mesh":
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("fsdp", "tp"))
    else:
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    torch.manual_seed(7)
    parameters = [torch.randn(100, 3), torch.randn(7).to(torch.bfloat16), torch.randn(5, dtype=torch.float64)]
    with nantucket.init("standing", attempt="a", mesh=mesh) as run:
        run.log(step=1, loss=1.0)
        run.checksum(1, parameters)
        if rank == 1:
            bits = parameters[1].view(torch.int16)
            bits[3] ^= 1
        run.checksum(2, parameters)
        run.checksum(3, [*reversed(parameters)])
        run.checksum(4, ["no tensor"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
