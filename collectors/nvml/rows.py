"""What the process that talks to the driver has answered, as rows of ``gpu/1`` and of ``link/1``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from collectors.source import LINKS, METRICS, Column, GpuRows, LinkRows

Parts = Sequence[Mapping[str, Any]]
"""One mapping for each GPU and each MIG instance: ``gpu, instance, uuid, lost, values, failures``, and where they were
read ``links`` and ``pids``."""


def gpu_rows(node: str, parts: Parts) -> GpuRows | None:
    """The rows of ``parts``. A metric that none of them has is left out."""
    if not parts:
        return None
    has = set[str]().union(*(part["values"] for part in parts))
    given = [name for name in METRICS if name in has]
    metrics = {name: Column.of(name, [part["values"].get(name) for part in parts]) for name in given}
    index = np.array([part["gpu"] for part in parts], dtype=np.int32)
    uuid = pa.array([part["uuid"] for part in parts], pa.string())
    instances = [part["instance"] for part in parts]
    instance = pa.array(instances, pa.string()) if any(instances) else None
    return GpuRows([(node, len(parts))], index, uuid, False, metrics, instance)


def nvlink_rows(node: str, parts: Parts) -> LinkRows | None:
    """A row for each NVLink whose GPU was asked for them."""
    links = [(part, port, values) for part in parts for port, values in part.get("links", ())]
    if not links:
        return None
    given = [name for name in LINKS if any(name in values for _, _, values in links)]
    return LinkRows(
        nodes=[(node, len(links))],
        kind=["nvlink"] * len(links),
        device=[f"gpu{part['gpu']}" for part, _, _ in links],
        port=[port for _, port, _ in links],
        gpu=[part["gpu"] for part, _, _ in links],
        uuid=[part["uuid"] for part, _, _ in links],
        simulated=False,
        metrics={name: Column.of(name, [values.get(name) for _, _, values in links]) for name in given},
    )
