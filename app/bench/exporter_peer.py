"""Peers of ``bench collect``: what people run on a node today.

``exporter_like`` asks the driver for the same quantities once a second with the plain calls of NVIDIA's Python binding
and serves them as Prometheus text, as dcgm-exporter does for DCGM. ``nvidia_smi_dmon`` is NVIDIA's own tool, where it
is installed.
"""

import asyncio
import os
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping, Sequence
from typing import Any

from app.bench.tree import alone_mib, cpu_seconds_of, process_tree

SETTLE_SECONDS = 5.0
DMON = ("nvidia-smi", "dmon", "-s", "pucvmet", "-d", "1")
EXPORTER_LIKE = (sys.executable, "-m", "app.bench.exporter_like")


async def measured_peers(environment: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """CPU and memory of each; ``None`` for one that is not on this machine."""
    dmon = await _measured(DMON, {}, seconds) if shutil.which(DMON[0]) else None
    return {"exporter_like": await _measured(EXPORTER_LIKE, environment, seconds), "nvidia_smi_dmon": dmon}


async def _measured(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=DEVNULL, env={**os.environ, **environment}
    )
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        before, began = cpu_seconds_of(process_tree(process.pid)), time.monotonic()
        await asyncio.sleep(seconds)
        tree = process_tree(process.pid)
        after, lasted = cpu_seconds_of(tree), time.monotonic() - began
        if process.returncode is not None:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        used = sum(after[pid] - before.get(pid, 0.0) for pid in after)
        return {"cpu_percent": round(100.0 * used / lasted, 3), "pss_mib": alone_mib(tree)}
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
