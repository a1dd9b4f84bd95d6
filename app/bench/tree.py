"""A process and its children as the kernel counts them: CPU time to the nanosecond, and memory as if alone."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

_KIB_IN_MIB = 1024
_CPU_CLOCK_OF_PROCESS = 2
"""``CPUCLOCK_SCHED`` of Linux's ``MAKE_PROCESS_CPUCLOCK``: the time that all its threads have run, ended ones too."""


def process_tree(pid: int) -> list[int]:
    """``pid`` and all its descendants that live."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in children.read_text().split():
                found += process_tree(int(child))
        except OSError:
            continue  # the thread is gone
    return found


def cpu_seconds_of(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each process so far. ProcessLookupError becomes an absent entry."""
    found = {}
    for pid in pids:
        try:
            found[pid] = time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
        except OSError:
            continue
    return found


def alone_mib(pids: Iterable[int]) -> float:
    """The proportional set size that these processes would have with no other process of their files beside them.

    What is private counts in full. Of a file that several of them have mapped, the pages of whoever has most count
    once: what one has of a library, the other has too. The kernel's own figure would shrink by every other Python that
    happens to run.
    """
    private, shared = 0, defaultdict[str, list[int]](list)
    for pid in pids:
        of_process: Counter[str] = Counter()
        name = ""
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            word, _, rest = line.partition(" ")
            if not word.endswith(":"):
                name = line.split(maxsplit=5)[5] if line.count(" ") > 4 and len(line.split(maxsplit=5)) > 5 else ""
            elif word in ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:"):
                private += int(rest.split()[0])
            elif word in ("Shared_Clean:", "Shared_Dirty:"):
                of_process[name] += int(rest.split()[0])
        for file, kib in of_process.items():
            shared[file].append(kib)
    return round((private + sum(max(sizes) for sizes in shared.values())) / _KIB_IN_MIB, 1)
