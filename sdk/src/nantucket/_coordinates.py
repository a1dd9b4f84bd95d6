"""Where a rank stands in a parallel job: from a device mesh that the job hands over, else from Megatron-LM's own state.

Nothing is imported: who uses neither has neither in memory.
"""

from __future__ import annotations

import sys
from typing import Any

MESH_NAMES = {
    "dp": ("dp", "data", "data_parallel", "dp_shard", "fsdp", "dp_shard_cp"),
    "tp": ("tp", "tensor", "tensor_parallel", "model"),
    "pp": ("pp", "pipe", "pipeline", "pipeline_parallel"),
    "ep": ("ep", "expert", "expert_parallel"),
}
"""Names of a mesh's dimensions, as TorchTitan, Accelerate and others give them."""
MEGATRON = {
    "dp": "get_data_parallel_rank",
    "tp": "get_tensor_model_parallel_rank",
    "pp": "get_pipeline_model_parallel_rank",
    "ep": "get_expert_model_parallel_rank",
}


def coordinates_of(mesh: Any) -> dict[str, int]:
    """This rank's ``dp, tp, pp, ep``, as far as they are known. Raises what a foreign mesh raises."""
    return _of_mesh(mesh) if mesh is not None else _of_megatron()


def _of_mesh(mesh: Any) -> dict[str, int]:
    names = getattr(mesh, "mesh_dim_names", None) or ()
    found = {}
    for column, known in MESH_NAMES.items():
        name = next((each for each in known if each in names), None)
        if name is not None:
            found[column] = int(mesh.get_local_rank(name))
    return found


def _of_megatron() -> dict[str, int]:
    state = sys.modules.get("megatron.core.parallel_state")
    ready = getattr(state, "model_parallel_is_initialized", None)
    if ready is None or not ready():
        return {}
    found = {}
    for column, name in MEGATRON.items():
        ask = getattr(state, name, None)
        try:
            found[column] = int(ask())  # type: ignore[misc]  # what is not there is caught
        except Exception:  # noqa: BLE001  a version without this kind of parallelism
            continue
    return found
