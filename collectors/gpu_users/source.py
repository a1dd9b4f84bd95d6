"""Who uses the GPUs, as a source: events alone. It looks processes and pods up, and tells what has changed."""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from collectors.errors import CallFailed, FieldFailure, SourceClosed
from collectors.gpu_users.merge import Holder
from collectors.gpu_users.pod_resources import SOCKET, list_holders
from collectors.gpu_users.processes import PROC, Processes, ProcessReader, Unread
from collectors.gpu_users.table import GpuUsers
from collectors.gpu_users.user import Origin
from collectors.one_look import OneLook
from collectors.source import SourceReading
from telemetry_bus.runtime.clock import Clock

PERIOD_SECONDS = 10.0
"""As often as the driver is asked for its processes. Looking up 16 of them takes 0.8 ms of CPU."""
PODS_SECONDS = 30.0
"""Pods come and go in minutes, and a kubelet's answer of 100 pods takes 3 ms of CPU."""
LOOK_SECONDS = 5.0
"""A look at /proc takes less than a millisecond a process; the kubelet has a deadline of its own, of 2 s."""
BACKOFF_MAX_SECONDS = 60.0
"""A kubelet that does not answer is asked after 10, 20, 40 and then every 60 s."""
PROCESSES_FIELD = "gpu_users"
PODS_FIELD = "gpu_users_pods"
"""Under these names it is counted what could not be read."""
_FAILURES = {
    Unread.NOT_PERMITTED: FieldFailure.NOT_PERMITTED,
    Unread.HIDDEN: FieldFailure.UNSUPPORTED,
}


@dataclass(frozen=True, slots=True)
class UsersOfGpus:
    """Who uses the GPUs of ``node``: ``users`` is the table that the other sources fill too.

    ``proc`` is the host's ``/proc``, which in a container is mounted elsewhere. ``socket`` is the kubelet's. ``in_pod``
    says whether this process runs in Kubernetes, where a kubelet is missed.
    """

    node: str
    users: GpuUsers
    proc: Path = PROC
    socket: Path = SOCKET
    look_seconds: float = LOOK_SECONDS
    in_pod: bool = field(default_factory=lambda: "KUBERNETES_SERVICE_HOST" in os.environ)

    def build(self, clock: Clock) -> "GpuUsersSource":
        """The source, not yet open."""
        return GpuUsersSource(self, clock)


class GpuUsersSource:
    """A running :class:`UsersOfGpus`. Opening it never fails: what is not there now may come."""

    name = "gpu_users"
    period_seconds: float | None = PERIOD_SECONDS
    urgent: asyncio.Event | None = None

    def __init__(self, config: UsersOfGpus, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._open = False
        self._reader = ProcessReader(config.proc, config.node)
        self._process_look: OneLook[Processes] = OneLook("gpu-users-processes")
        self._pod_look: OneLook[dict[str, list[Holder]]] = OneLook("gpu-users-pods")
        self._unread: Counter[Unread] = Counter()
        self._in_pods = config.in_pod
        self._kubelet_said = ""
        self._ask_kubelet_at = -math.inf
        self._backoff = PERIOD_SECONDS

    async def __aenter__(self) -> Self:
        """Open it."""
        self._open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        self._open = False

    async def read(self, now: float) -> SourceReading:
        """Look everything up, and give what has changed as events."""
        if not self._open:
            raise SourceClosed(self.name)
        failures: Counter[tuple[str, FieldFailure]] = Counter()
        await self._look_at_processes(failures)
        await self._look_at_pods(failures)
        return SourceReading(None, self.config.users.changes(now), failures)

    def unreadable(self) -> Sequence[str]:
        """What could not be read at the last reading, and what to do about it."""
        told = [_REMEDIES[why].format(count=count) for why, count in self._unread.items() if why in _REMEDIES]
        if self._process_look.stuck:
            told.append(f"a process does not let its environment be read: {self.config.proc}/PID/environ hangs")
        if self._kubelet_said and self._in_pods:
            told.append(
                f"pods are not named: {self._kubelet_said}. In a pod, mount the folder {self.config.socket.parent} of "
                "the host at the same place; it is read as root"
            )
        return told

    async def _look_at_processes(self, failures: "Counter[tuple[str, FieldFailure]]") -> None:
        pids = sorted(self.config.users.pids)
        try:
            seen = await self._process_look.take(partial(self._reader.look, pids), self.config.look_seconds)
        except TimeoutError:
            failures[PROCESSES_FIELD, FieldFailure.NO_ANSWER] += 1
            return
        self._unread = seen.unread
        self._in_pods = self._in_pods or any(process.in_pod for process in seen.known.values())
        failures.update({(PROCESSES_FIELD, _FAILURES[why]): n for why, n in seen.unread.items() if why in _FAILURES})
        self.config.users.saw_environments(seen.known)

    async def _look_at_pods(self, failures: "Counter[tuple[str, FieldFailure]]") -> None:
        if self._clock.monotonic() < self._ask_kubelet_at:
            return
        try:
            held = await self._pod_look.take(partial(list_holders, self.config.socket), self.config.look_seconds)
        except (CallFailed, TimeoutError) as error:
            self._kubelet_failed(str(error) or "the kubelet does not answer", failures)
            return
        self._kubelet_said, self._backoff = "", PERIOD_SECONDS
        # Half a period early, or a reading that is a little early would miss its turn.
        self._ask_kubelet_at = self._clock.monotonic() + PODS_SECONDS - PERIOD_SECONDS / 2
        self.config.users.saw_holders(Origin.POD_RESOURCES, held)

    def _kubelet_failed(self, said: str, failures: "Counter[tuple[str, FieldFailure]]") -> None:
        """What it said last stands: it restarts on every update, and the pods run on."""
        self._kubelet_said = said
        self._ask_kubelet_at = self._clock.monotonic() + self._backoff
        self._backoff = min(2.0 * self._backoff, BACKOFF_MAX_SECONDS)
        if self._in_pods:
            failures[PODS_FIELD, FieldFailure.NO_ANSWER] += 1


_REMEDIES: Mapping[Unread, str] = {
    Unread.NOT_PERMITTED: (
        "{count} processes on GPUs are of other users, and their environment may not be read: jobs without the SDK are "
        "known by process name only. Run the collector as root or with CAP_SYS_PTRACE, or let it be"
    ),
    Unread.HIDDEN: (
        "{count} processes on GPUs are the host's, and this container sees only its own: give its pod hostPID: true, "
        "or mount the host's /proc and name it (gpu_users.proc = /host/proc)"
    ),
}
