"""The processes of ``/proc``: whose they are, and the allowed part of their environment. Blocks: for a thread.

A process is read once: its number and its time of start are who it is, so that a number that is given again is another
process. What was refused is asked again.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from collectors.gpu_users.environment import in_pod, user_in, variables_of
from collectors.gpu_users.merge import Process
from collectors.gpu_users.user import bounded

PROC = Path("/proc")
PIECE_BYTES = 64 * 1024
ENVIRON_BYTES_MAX = 8 * 1024 * 1024
"""Linux takes 6 MiB of arguments and environment at most, at its usual limit of a stack; only a piece is ever held."""
PROCESSES_MAX = 1_024
"""8 GPUs with all of a GPU's 128 processes each."""
STAT_BYTES_MAX = 4_096
"""A line of 52 numbers and a name of 15 bytes takes 300."""
HOST_NAMESPACE = "pid:[4026531836]"
"""The kernel's first pid namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h. The driver counts processes in it."""


class Unread(StrEnum):
    """Why nothing is known of a process that the driver lists."""

    NOT_PERMITTED = "not_permitted"
    """It runs as another user, and this one may not look into it."""
    GONE = "gone"
    """It has ended since, or its environment changed hands while it was read."""
    HIDDEN = "hidden"
    """The driver's numbers are the host's, and this process does not see the host's ``/proc``."""


@dataclass(frozen=True, slots=True)
class Processes:
    """What one look gave: what is known of each, and how many are unread and why."""

    known: dict[int, Process] = field(default_factory=dict)
    unread: "Counter[Unread]" = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Stat:
    name: str | None
    parent: int
    start: int


class ProcessReader:
    """Reads processes under ``proc``, on ``node``. Use it from one thread at a time."""

    def __init__(self, proc: Path, node: str) -> None:
        self._proc = proc
        self._node = node
        self._of_host: bool | None = None
        self._read: dict[tuple[int, int], Process] = {}

    def look(self, pids: Sequence[int]) -> Processes:
        """What is known of these processes now. Raises nothing for what a process or ``/proc`` does."""
        if self._of_host is None:
            self._of_host = shows_host(self._proc)
        if not self._of_host:
            # Another process may have that number here.
            return Processes(unread=Counter({Unread.HIDDEN: len(pids)}) if pids else Counter())
        made = Processes()
        kept: dict[tuple[int, int], Process] = {}
        for pid in pids[:PROCESSES_MAX]:
            try:
                stat = self._stat(pid)
                process = self._read.get((pid, stat.start))
                process = self._process(pid, stat, made.unread) if process is None else process
            except (OSError, ValueError):
                made.unread[Unread.GONE] += 1
                continue
            made.known[pid] = process
            if process.in_pod is not None:
                kept[pid, stat.start] = process
        self._read = kept
        return made

    def _process(self, pid: int, stat: _Stat, unread: "Counter[Unread]") -> Process:
        folder = self._proc / str(pid)
        uid = folder.stat().st_uid
        try:
            variables = variables_of(_pieces(folder / "environ"))
        except PermissionError:
            unread[Unread.NOT_PERMITTED] += 1
            return Process(pid, stat.parent, uid, stat.name)
        if self._stat(pid).start != stat.start:
            raise ProcessLookupError(pid)
        return Process(pid, stat.parent, uid, stat.name, user_in(variables, self._node), in_pod(variables))

    def _stat(self, pid: int) -> _Stat:
        with (self._proc / str(pid) / "stat").open("rb", buffering=0) as file:
            line = file.read(STAT_BYTES_MAX)
        # The name may hold spaces and brackets: it ends at the last bracket.
        name, bracket, rest = line.partition(b"(")[2].rpartition(b")")
        words = rest.split()
        if not bracket or len(words) < 20:
            raise ValueError(f"expected the stat of process {pid} to have 52 fields, found {len(words)} after its name")
        return _Stat(bounded(name.decode("utf-8", "replace")), int(words[1]), int(words[19]))


def _pieces(path: Path) -> Iterator[bytes]:
    left = ENVIRON_BYTES_MAX
    with path.open("rb", buffering=0) as file:
        while left > 0 and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            yield piece


def shows_host(proc: Path) -> bool:
    """Whether the processes under ``proc`` have the numbers that the driver knows them by.

    They have where this process is in the kernel's first namespace, and where ``proc`` is of one around its own: there
    it has another number than it knows itself by. Without a ``/proc`` at all they have not.
    """
    try:
        if int((proc / "self").readlink().name) != os.getpid():
            return True
        return str((proc / "self" / "ns" / "pid").readlink()) == HOST_NAMESPACE
    except (OSError, ValueError):
        return False
