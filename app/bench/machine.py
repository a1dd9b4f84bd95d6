"""What every benchmark says of the machine, and the operating system's own accounting of processes."""

import os
from pathlib import Path
from typing import Any

import numpy as np

_MIB = 1024 * 1024


def machine() -> dict[str, Any]:
    """Cores, memory and processor, as the kernel names them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {"cores": os.cpu_count(), "memory_gib": round(memory / 1024**3, 1), "cpu": names[0] if names else "unknown"}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and the children it has waited for, from ``/proc``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib(pid: int) -> float:
    """The most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / _MIB, 1)
    raise LookupError(f"/proc/{pid}/status has no VmHWM")


def percentiles(values_ms: list[float]) -> dict[str, float | None]:
    """Median, 99th percentile and maximum; ``None`` where nothing was measured."""
    if not values_ms:
        return {"p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99 = np.percentile(values_ms, [50, 99], method="higher")
    return {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1), "max_ms": round(max(values_ms), 1)}
