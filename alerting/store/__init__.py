"""The durable store: incidents and the outbox. The only place that imports sqlalchemy."""

from alerting.store.bounds import Bounds
from alerting.store.reads import Position, Standing, StoredIncident
from alerting.store.store import Store, StoreReader
from alerting.store.writes import Plan, Recorded

__all__ = ["Bounds", "Plan", "Position", "Recorded", "Standing", "Store", "StoreReader", "StoredIncident"]
