"""Alerting: findings become incidents, and incidents reach people."""

from alerting.body import Presentation
from alerting.delivery import Backoff, DeliveryState
from alerting.errors import (
    AlertingError,
    BadSetting,
    DeliveryFailed,
    Outcome,
    PageNotTaken,
    StoreInUse,
    StoreMismatch,
    StoreUnavailable,
    UnknownReceiver,
)
from alerting.incident import Tier
from alerting.pager import Pager, PagerOptions
from alerting.reader import IncidentReader
from alerting.receipts import ReceiptOutcome
from alerting.receivers import RECEIVERS, Receiver, WebhookSettings
from alerting.route import Routing
from alerting.service import AlertOptions, AlertService
from alerting.stats import PagerStats, ReportOutcome, Stats
from alerting.store import Store, StoreReader
from alerting.testpage import PageResult, send_test_page
from telemetry_bus.runtime.secret import Secret

__all__ = [
    "RECEIVERS",
    "AlertOptions",
    "AlertService",
    "AlertingError",
    "Backoff",
    "BadSetting",
    "DeliveryFailed",
    "DeliveryState",
    "IncidentReader",
    "Outcome",
    "PageNotTaken",
    "PageResult",
    "Pager",
    "PagerOptions",
    "PagerStats",
    "Presentation",
    "ReceiptOutcome",
    "Receiver",
    "ReportOutcome",
    "Routing",
    "Secret",
    "Stats",
    "Store",
    "StoreInUse",
    "StoreMismatch",
    "StoreReader",
    "StoreUnavailable",
    "Tier",
    "UnknownReceiver",
    "WebhookSettings",
    "send_test_page",
]
