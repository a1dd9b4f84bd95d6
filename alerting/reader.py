"""Incidents for those who look at them: the same object that receivers get, and how it stands now."""

from collections.abc import Callable, Sequence
from typing import Any

from alerting.body import Presentation, incident_object
from alerting.store import StoredIncident, StoreReader
from telemetry_bus.runtime.clock import Clock


class IncidentReader:
    """Reads a store, of this process or another. All methods raise :class:`~alerting.errors.StoreUnavailable`.

    An incident is the webhook's ``incident`` object, and besides ``status`` (``firing`` or ``resolved``), ``findings``
    (how many), ``revision`` (of its last change, growing over the whole store) and ``deliveries`` (a list of
    ``{"receiver", "transition", "state", "attempts", "last_error"}``).
    """

    def __init__(
        self,
        store: StoreReader,
        clock: Clock,
        presentation: Presentation | None = None,
        blind: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._presentation = Presentation() if presentation is None else presentation
        self._blind = blind

    async def _sight(self) -> tuple[str, ...]:
        """What cannot be seen just now, in words."""
        return (*self._blind(), *(await self._store.sight()).sentences(self._clock.now()))

    async def incidents(self, limit: int = 200, open_only: bool = False) -> list[dict[str, Any]]:
        """Up to ``limit`` incidents, newest first."""
        return self._shown(await self._store.newest(limit, open_only), await self._sight())

    async def incident(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the word of the API
        """One incident, ``findings`` being the list of its newest findings, oldest first; ``None`` if there is none."""
        stored = await self._store.one(id)
        if stored is None:
            return None
        return self._shown([stored[0]], await self._sight())[0] | {
            "findings": stored[1],
            "findings_total": stored[0].findings,
        }

    async def changed_since(self, revision: int, limit: int = 200) -> tuple[int, list[dict[str, Any]]]:
        """The store's revision, and up to ``limit`` incidents that changed after ``revision``, oldest change first.

        If more have changed: the newest open ones, and if there is room left, those that were resolved last.
        """
        current, stored = await self._store.changed_since(revision, limit)
        return current, self._shown(stored, await self._sight() if stored else ())

    async def open_by_tier(self) -> dict[str, int]:
        """How many incidents are open, by tier, however many there are."""
        return {tier.value: count for tier, count in (await self._store.open_by_tier()).items()}

    async def ready(self) -> None:
        """Raise if the store cannot be read."""
        await self._store.ready()

    def _shown(self, stored: Sequence[StoredIncident], blind: Sequence[str]) -> list[dict[str, Any]]:
        now = self._clock.now()
        return [
            incident_object(item.incident, self._presentation, blind, now)
            | {
                "status": item.incident.status.value,
                "findings": item.findings,
                "revision": item.revision,
                "deliveries": [dict(delivery) for delivery in item.deliveries],
            }
            for item in stored
        ]
