"""Incidents as the dashboards see them: where they come from, and the copy that the page is served from."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

INCIDENTS_MAX = 200
"""Incidents on the page: more than a night brings; older ones are asked for by id."""
TIERS = ("page", "ticket", "log")

Incident = dict[str, Any]
_log = logging.getLogger(__name__)


class IncidentSource(Protocol):
    """Whoever keeps the incidents: alerting's store, handed in by ``app``.

    An incident is the ``incident`` object of the generic webhook and, besides, ``status`` ("firing" or "resolved"),
    ``findings`` (how many), ``revision``, ``simulated`` and ``deliveries`` (each ``receiver``, ``transition``,
    ``state``, ``attempts``, ``last_error``).
    """

    async def incidents(self, limit: int = 200, open_only: bool = False) -> list[Incident]:
        """The newest ``limit`` incidents, newest first."""
        ...

    async def incident(self, id: str) -> Incident | None:  # noqa: A002
        """One incident, ``None`` if there is none of that id."""
        ...

    async def changed_since(self, revision: int, limit: int = 200) -> tuple[int, list[Incident]]:
        """The newest revision, and up to ``limit`` of what has changed after ``revision`` (0: all).

        If more have changed: the newest open ones, and if there is room left, those that were resolved last.
        """
        ...

    async def open_by_tier(self) -> dict[str, int]:
        """How many are firing, by tier, however many there are."""
        ...

    async def ready(self) -> None:
        """Raise if the store cannot be read."""
        ...


class NoIncidents:
    """A source without incidents, for a process that has no store."""

    async def incidents(self, limit: int = 200, open_only: bool = False) -> list[Incident]:
        """None."""
        return []

    async def incident(self, id: str) -> Incident | None:  # noqa: A002
        """None."""
        return None

    async def changed_since(self, revision: int, limit: int = 200) -> tuple[int, list[Incident]]:
        """Nothing ever changes."""
        return revision, []

    async def open_by_tier(self) -> dict[str, int]:
        """None."""
        return {}

    async def ready(self) -> None:
        """There is nothing to be ready."""


class IncidentFeed:
    """A bounded copy of the newest incidents, kept up by asking what has changed.

    ``failure`` says in words why the store could not be read the last time; the copy stays as it was.
    """

    def __init__(self, source: IncidentSource) -> None:
        self.revision = 0
        self.failure: str | None = None
        self.failures = 0
        self._source = source
        self._held: dict[str, Incident] = {}
        self._open = dict.fromkeys(TIERS, 0)

    async def refresh(self) -> list[Incident]:
        """Ask the source; return what has changed, at most :data:`INCIDENTS_MAX` and what is no longer open of ours."""
        try:
            revision, changed = await self._source.changed_since(self.revision, INCIDENTS_MAX)
            if len(changed) >= INCIDENTS_MAX:
                changed += await self._left_out({one["id"] for one in changed})
            counts = await self._source.open_by_tier()
        except Exception as error:  # noqa: BLE001 - whatever store was handed in: the page goes on and says so
            self.failures += 1
            if self.failure is None:
                _log.warning("the incident store cannot be read, the page shows what it had: %s", error)
            self.failure = f"{type(error).__name__}: {error}"
            return []
        self.failure = None
        self.revision = revision
        self._open = dict.fromkeys(TIERS, 0) | counts
        for incident in changed:
            self._held[incident["id"]] = incident
        self._trim()
        return changed

    def newest(self) -> list[Incident]:
        """Open ones first, then the newest first."""
        return sorted(self._held.values(), key=lambda one: (one.get("status") == "resolved", -_detected(one)))

    def open_by_tier(self) -> dict[str, int]:
        """How many were firing at the last refresh, by tier, those that are not held included."""
        return dict(self._open)

    async def _left_out(self, told: set[str]) -> list[Incident]:
        """Open ones of ours that a full answer did not tell of: they may be over. As many as are held at most."""
        ours = [name for name, one in self._held.items() if one.get("status") != "resolved" and name not in told]
        now = [await self._source.incident(name) for name in ours]
        return [one for one in now if one is not None]

    def _trim(self) -> None:
        for incident in self.newest()[INCIDENTS_MAX:]:
            del self._held[incident["id"]]


def usd_per_hour(incidents: Sequence[Incident]) -> float:
    """What the firing ones of ``incidents`` burn together; unknown costs are left out."""
    costs = [(one.get("cost") or {}).get("usd_per_hour") for one in incidents if one.get("status") != "resolved"]
    return sum(cost for cost in costs if isinstance(cost, int | float))


def _detected(incident: Incident) -> float:
    """The incident's time in UTC seconds, written as a number or in ISO 8601; 0 where it cannot be read."""
    time = incident.get("detected_time")
    if isinstance(time, int | float):
        return float(time)
    if isinstance(time, str):
        try:
            return datetime.fromisoformat(time).timestamp()
        except ValueError:
            return 0.0
    return 0.0
