"""The alert role as a process of its own, that kills itself at a moment that is asked for.

python -m tests.alerting.alert_process BUS_URL STORE HOOK_URL MOMENT

MOMENT is `before-send`, `after-send` (each once a page is at hand) or `never`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from alerting import AlertService, Receiver, Routing, Secret, Store, Tier, WebhookSettings
from alerting.delivery import Delivery
from telemetry_bus import open_bus
from telemetry_bus.runtime.clock import SystemClock
from tests.fakes.webhook_server import SECRET


class Doomed:
    """A real receiver; the process dies by SIGKILL before or after its first delivery is sent."""

    def __init__(self, inner: Receiver, moment: str) -> None:
        self._inner = inner
        self._moment = moment

    @property
    def name(self) -> str:
        """The name of the real one."""
        return self._inner.name

    @property
    def tiers(self) -> frozenset[Tier]:
        """The tiers of the real one."""
        return self._inner.tiers

    async def __aenter__(self) -> Self:
        """Open the real one."""
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the real one."""
        await self._inner.__aexit__(kind, error, trace)

    async def send(self, delivery: Delivery) -> int:
        """Send for real, and die at the moment that was asked for."""
        if self._moment == "before-send":
            os.kill(os.getpid(), signal.SIGKILL)
        status = await self._inner.send(delivery)
        if self._moment == "after-send":
            os.kill(os.getpid(), signal.SIGKILL)
        return status

    def receipt(self, delivery_id: str) -> str:
        """The receipt of the real one."""
        return self._inner.receipt(delivery_id)


async def main(bus_url: str, store_path: str, hook_url: str, moment: str) -> None:
    """Run until killed."""
    clock = SystemClock()
    receiver = Doomed(WebhookSettings("ops", Secret(hook_url), Secret(SECRET)).build(clock), moment)
    async with (
        open_bus(bus_url, clock) as bus,
        Store(Path(store_path)) as store,
        AlertService(bus, store, [receiver], Routing(), clock) as service,
    ):
        await service.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
