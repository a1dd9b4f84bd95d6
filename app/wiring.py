"""What the roles of one process share, and who owns their tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from app.settings import Settings, SettingsError, secret
from app.telemetry import Gauges
from telemetry_bus.bus import Bus
from telemetry_bus.outlet import Outlet, OutletOptions
from telemetry_bus.runtime.clock import Clock


def link_options(settings: Settings) -> OutletOptions:
    """What this node shows to a gateway."""
    link = settings.link
    return OutletOptions(settings.node, settings.region, secret(link.token), link.ca, link.cert, link.key)


class Owned:
    """Starts tasks in a group and knows them."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: list[asyncio.Task[None]] = []

    def create_task(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Start ``work``."""
        task = self._group.create_task(work, name=name)
        self._tasks.append(task)
        return task

    def cancel(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def owned_tasks() -> AsyncIterator["Owned"]:
    """A task group whose tasks are cancelled when the block ends; a task that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        owned = Owned(group)
        try:
            yield owned
        finally:
            owned.cancel()


@dataclass(slots=True)
class Wiring:
    """What the roles of one process share."""

    settings: Settings
    opened_bus: Bus | None
    """``None`` where the URL is a gateway's: it only takes."""
    outlet: Outlet
    """Where frames go up: the bus, or the gateway."""
    clock: Clock
    stack: contextlib.AsyncExitStack
    tasks: Owned
    gauges: Gauges = field(default_factory=Gauges)
    incidents_changed: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: list[asyncio.Event] = field(default_factory=list)
    """What must have happened before the process calls itself ready."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the ready line says: where the page is, where jobs deliver."""

    @property
    def bus(self) -> Bus:
        """The bus. Raises :class:`~app.settings.SettingsError` where there is only a gateway, which cannot be read."""
        if self.opened_bus is None:
            raise SettingsError(
                f"bus: found {self.outlet.url}, a gateway, which takes frames and cannot be read. Expected the bus "
                "itself (file:///FOLDER or kafka://HOST:PORT,...): only collect and gateway may send to a gateway."
            )
        return self.opened_bus

    def source(self, part: str) -> str:
        """The name under which a part of this process makes frames; each start has a boot id of its own."""
        return f"{self.settings.node}/{part}"
