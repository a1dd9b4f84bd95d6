"""What the collector tells of a training process by itself: its stack when it hangs, its end without a goodbye."""

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from collectors.training_lanes import Lane, Message
from collectors.training_memory import ByteBudget
from collectors.training_wire import Hello, RowsMessage, Stream
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import WITHOUT_GOODBYE, EventKind

TOLD_BY = "/collector"
WAITING_MAX = 16
"""Events of one process that may wait for the bus; what goes beyond is passed over."""


class Place(Protocol):
    """Where events go: the listener."""

    clock: Clock
    node: str
    region: str | None
    budget: ByteBudget
    lanes: dict[Stream, Lane]


class Teller:
    """Tells of one process, in its name and under a source of the collector's own."""

    def __init__(self, place: Place, hello: Hello) -> None:
        self._place = place
        self._hello = replace(hello, boot=uuid.uuid4(), told_by=TOLD_BY)
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def stack(self, cells: Mapping[str, str]) -> None:
        """Where the process stands."""
        self._tell(EventKind.STACK, cells)

    def ended_without_goodbye(self) -> None:
        """The process is gone and has not said so."""
        detail = json.dumps({"status": WITHOUT_GOODBYE})
        self._tell(EventKind.JOB_END, {"message": "the process is gone; it said no goodbye", "detail": detail})

    def _tell(self, kind: EventKind, cells: Mapping[str, str]) -> None:
        if len(self._tasks) >= WAITING_MAX:
            return
        task = asyncio.get_running_loop().create_task(self._publish(kind, cells), name="sdk-teller")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, kind: EventKind, cells: Mapping[str, Any]) -> None:
        now = self._place.clock.now()
        row = {"time": now, "kind": kind.value, **cells}
        size = sum(len(str(value)) for value in row.values())
        await self._place.budget.take(size)
        rows = RowsMessage(Stream.EVENT, self._seq, now, [row], 0, 0)
        self._seq += 1
        message = Message(self._hello, rows, size, self._place.clock.now, [])
        await self._place.lanes[Stream.EVENT].accept(message, self._place.region, self._place.node)
