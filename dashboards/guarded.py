"""The incident store as the routes ask it: whatever it raises is one error of ours."""

import logging
import math
from collections.abc import Awaitable
from typing import TypeVar

from dashboards.errors import StoreUnavailable
from dashboards.incidents import Incident, IncidentSource
from telemetry_bus.runtime.clock import Clock

SAY_EVERY_SECONDS = 60.0
"""However often a store that is away is asked for, the log is told once a minute."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class GuardedSource:
    """The questions of the routes to ``source``; all raise :class:`StoreUnavailable` if it cannot answer."""

    def __init__(self, source: IncidentSource, clock: Clock) -> None:
        self._source, self._clock = source, clock
        self._said_at = -math.inf

    async def incidents(self, limit: int, open_only: bool) -> list[Incident]:
        """The newest ``limit`` incidents, newest first."""
        return await self._guarded(self._source.incidents(limit, open_only))

    async def incident(self, id: str) -> Incident | None:  # noqa: A002
        """One incident, ``None`` if there is none of that id."""
        return await self._guarded(self._source.incident(id))

    async def ready(self) -> None:
        """Whether there would be an answer."""
        await self._guarded(self._source.ready())

    async def _guarded(self, asked: Awaitable[T]) -> T:
        try:
            return await asked
        except Exception as error:
            now = self._clock.monotonic()
            if now - self._said_at >= SAY_EVERY_SECONDS:
                self._said_at = now
                _log.warning("the incident store cannot be read: %s: %s", type(error).__name__, error)
            raise StoreUnavailable(error) from error
