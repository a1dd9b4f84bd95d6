"""The embedded bus: an append-only log in SQLite, for one machine and nothing to install."""

from telemetry_bus.embedded.bus import EmbeddedBus
from telemetry_bus.embedded.store import DEFAULT_LIMITS, TopicLimit, sqlite_version

__all__ = ["DEFAULT_LIMITS", "EmbeddedBus", "TopicLimit", "sqlite_version"]
