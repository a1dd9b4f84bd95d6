"""NVML as a source: one child process, asked once a reading, killed when it does not answer, and started again."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from collectors.errors import DriverNotFound, DriverRefused, FieldFailure, SourceClosed
from collectors.gpu_users import GpuUsers
from collectors.nvml.process import Child, ChildGone
from collectors.source import METRICS, Column, EventRow, GpuRows, SourceReading
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind

READ_DEADLINE_SECONDS = 2.0
"""Eight healthy GPUs answer in some milliseconds; a busy driver may take a good part of a second."""
START_DEADLINE_SECONDS = 60.0
"""Without persistence mode the driver wakes every GPU first, some seconds each."""
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 60.0
EVERY_FIELD = "*"
"""The field of a failure that took a whole reading."""


@dataclass(frozen=True, slots=True)
class NvmlGpus:
    """The GPUs of this machine, read through NVML as ``node``.

    ``environment`` is added to that of the child process, such as ``LD_LIBRARY_PATH`` where the driver's library is not
    on the loader's path. ``users`` is told every 10 s which processes the driver lists.
    """

    node: str
    read_deadline_seconds: float = READ_DEADLINE_SECONDS
    start_deadline_seconds: float = START_DEADLINE_SECONDS
    backoff_first_seconds: float = BACKOFF_FIRST_SECONDS
    environment: Mapping[str, str] = field(default_factory=dict)
    users: GpuUsers | None = None

    def build(self, clock: Clock) -> "NvmlSource":
        """The source, not yet open."""
        return NvmlSource(self, clock)


class NvmlSource:
    """A running :class:`NvmlGpus`. Opening raises :class:`DriverNotFound` or :class:`DriverRefused`."""

    name = "nvml"
    period_seconds: float | None = None
    urgent: asyncio.Event | None = None

    def __init__(self, config: NvmlGpus, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self._open = False
        self._child: Child | None = None
        self._stuck: Child | None = None
        self._retry_at = 0.0
        self._backoff = config.backoff_first_seconds
        self._silent_because = ""
        self._lost: set[int] = set()
        self._events: list[EventRow] = []
        self._uuids: dict[int, str | None] = {}
        self.starts = 0
        """How often the child was started."""
        self.inventory: Mapping[str, Any] = {}
        """``driver_version`` and ``gpus`` as the child found them when it started."""

    @property
    def gpu_count(self) -> int:
        """How many GPUs the driver showed when it was opened."""
        return len(self.inventory.get("gpus", ()))

    @property
    def child_pid(self) -> int | None:
        """The process that talks to the driver, ``None`` while there is none."""
        return None if self._child is None else self._child.pid

    async def __aenter__(self) -> Self:
        """Start the child and learn what is there."""
        try:
            await self._start()
        except ChildGone as error:
            raise DriverRefused(str(error)) from error
        self._open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the child."""
        self._open = False
        child, self._child = self._child, None
        if child is not None:
            await child.close()

    async def read(self, now: float) -> SourceReading:
        """All GPUs once. While the driver does not answer there are no rows and one counted failure a reading."""
        if not self._open:
            raise SourceClosed(self.name)
        try:
            if self._child is None:
                await self._restart()
            assert self._child is not None
            answer = await self._child.ask(now, self.config.read_deadline_seconds)
            reading = self._reading(answer["gpus"])
            self._tell_users(answer["gpus"], now)
        except (ChildGone, DriverNotFound, DriverRefused) as error:
            await self._give_up(error)
            return SourceReading(None, self._take_events(), Counter({(EVERY_FIELD, FieldFailure.NO_ANSWER): 1}))
        self._answered()
        return SourceReading(reading[0], self._take_events(), reading[1])

    def unreadable(self) -> Sequence[str]:
        """Why the driver gives nothing, and which GPUs it does not reach."""
        lost = [f"GPU {index} is lost" for index in sorted(self._lost)]
        return [self._silent_because, *lost] if self._silent_because else lost

    async def _start(self) -> None:
        self.starts += 1
        child = await Child.start(self.config.environment)
        try:
            hello = await child.receive(self.config.start_deadline_seconds)
        except BaseException:
            await self._bury(child)
            raise
        if not hello["ready"]:
            await child.close()
            raise (DriverNotFound if hello["library_missing"] else DriverRefused)(hello["message"])
        self._child = child
        self._take_inventory(hello)

    async def _restart(self) -> None:
        if self._stuck is not None and not self._stuck.dead:
            raise ChildGone(f"process {self._stuck.pid} is stuck in the driver and cannot be killed", hung=True)
        self._stuck = None
        if (left := self._retry_at - self._clock.monotonic()) > 0:
            raise ChildGone(f"{self._silent_because}; the next try is in {left:.1f} s", hung=False)
        await self._start()

    async def _give_up(self, error: Exception) -> None:
        child, self._child = self._child, None
        waiting = child is None and self._clock.monotonic() < self._retry_at
        if child is not None:
            await self._bury(child)
        delay = self._backoff
        if not waiting:
            self._retry_at = self._clock.monotonic() + self._backoff
            self._backoff = min(2.0 * self._backoff, BACKOFF_MAX_SECONDS)
        if not self._silent_because:
            self._silent_because = str(error)
            state = "hung" if isinstance(error, ChildGone) and error.hung else "died"
            self._tell(f"{error}; its reader is started again in {delay:g} s", {"state": state})

    async def _bury(self, child: Child) -> None:
        if not await child.kill():
            self._stuck = child

    def _answered(self) -> None:
        self._backoff = self.config.backoff_first_seconds
        if self._silent_because:
            self._tell("the driver answers again", {"state": "answers", "was": self._silent_because})
            self._silent_because = ""

    def _take_inventory(self, hello: Mapping[str, Any]) -> None:
        inventory = {"driver_version": hello["driver_version"], "gpus": hello["gpus"]}
        if inventory == self.inventory:
            return
        self.inventory = inventory
        self._uuids = {gpu["gpu"]: gpu["uuid"] for gpu in hello["gpus"]}
        detail = {"hostname": self.config.node, **inventory, "simulated": False}
        message = f"{self.config.node}: {len(hello['gpus'])} GPUs, driver {hello['driver_version']}"
        self._events.append(EventRow(EventKind.NODE_INVENTORY, self.config.node, message, False, detail=detail))

    def _reading(self, gpus: Sequence[Mapping[str, Any]]) -> tuple[GpuRows | None, Counter[tuple[str, FieldFailure]]]:
        failures = Counter((name, FieldFailure(why)) for gpu in gpus for name, why in gpu["failures"].items())
        for gpu in gpus:
            if gpu["instance"] is None:
                self._notice_loss(gpu)
        return self._rows([gpu for gpu in gpus if not gpu["lost"]]), failures

    def _tell_users(self, gpus: Sequence[Mapping[str, Any]], now: float) -> None:
        if (users := self.config.users) is None:
            return
        for gpu in gpus:
            if gpu["uuid"] is not None and "pids" in gpu:
                users.saw_processes(gpu["uuid"], gpu["instance"], gpu["pids"], now, gpu=gpu["gpu"])

    def _notice_loss(self, gpu: Mapping[str, Any]) -> None:
        index = gpu["gpu"]
        if gpu["lost"] and index not in self._lost:
            self._lost.add(index)
            self._tell(f"GPU {index} is lost: the driver does not reach it", {"state": "gpu_lost"}, index)
        elif not gpu["lost"] and index in self._lost:
            self._lost.discard(index)
            self._tell(f"GPU {index} is back", {"state": "gpu_back"}, index)

    def _rows(self, gpus: Sequence[Mapping[str, Any]]) -> GpuRows | None:
        if not gpus:
            return None
        metrics = {name: Column.of(name, [gpu["values"].get(name) for gpu in gpus]) for name in METRICS}
        index = np.array([gpu["gpu"] for gpu in gpus], dtype=np.int32)
        uuid = pa.array([gpu["uuid"] for gpu in gpus], pa.string())
        instances = [gpu["instance"] for gpu in gpus]
        instance = pa.array(instances, pa.string()) if any(instances) else None
        return GpuRows([(self.config.node, len(gpus))], index, uuid, False, metrics, instance)

    def _tell(self, message: str, detail: Mapping[str, Any], gpu: int | None = None) -> None:
        uuid = None if gpu is None else self._uuids.get(gpu)
        kept = {"source": self.name, **detail}
        row = EventRow(
            EventKind.DRIVER, self.config.node, f"{self.config.node}: {message}", False, gpu, uuid, detail=kept
        )
        self._events.append(row)

    def _take_events(self) -> list[EventRow]:
        events, self._events = self._events, []
        return events
