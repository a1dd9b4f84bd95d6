"""What alerting counts about itself. Whoever serves the metrics reads it; nobody else writes it."""

from dataclasses import dataclass, field
from enum import StrEnum

from alerting.delivery import DeliveryState
from alerting.errors import Outcome
from alerting.incident import Tier
from alerting.receipts import ReceiptOutcome


@dataclass(slots=True)
class Stats:
    """``*_total`` only grow, from the start of the process. ``None`` is "not known" or "there is none", never zero."""

    findings_total: int = 0
    """Findings taken for the first time."""
    findings_again_total: int = 0
    """Findings that had been taken before."""
    refused_total: int = 0
    """Frames or rows of the findings topic that could not be read."""
    dead_letters_lost_total: int = 0
    """Refusals that could not be written to the dead-letter topic either."""
    tries_total: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    """Tries to deliver, by what came of them."""
    retries_total: int = 0
    """Tries after the first one of a delivery."""
    direct_total: int = 0
    """Deliveries that were sent before they were recorded, because the store was away."""
    direct_left_out_total: int = 0
    """Deliveries that could not be sent without the store, because too many waited: they wait for it."""
    marks_forgotten_total: int = 0
    """Outcomes that were forgotten before the store could take them: these deliveries may be sent again."""
    receipts_total: dict[ReceiptOutcome, int] = field(default_factory=lambda: dict.fromkeys(ReceiptOutcome, 0))
    """Receipts that came with findings, by what they were good for."""
    store_failures_total: int = 0
    bus_failures_total: int = 0
    heartbeats_total: int = 0
    heartbeats_withheld_total: int = 0
    """Heartbeats that were not sent because the watcher is blind."""
    heartbeats_failed_total: int = 0
    open_incidents: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))
    deliveries: dict[DeliveryState, int] = field(default_factory=lambda: dict.fromkeys(DeliveryState, 0))
    """Deliveries in the outbox, by state."""
    oldest_undelivered_seconds: float | None = None
    held_findings: int = 0
    """Findings that wait in memory for the store to come back."""
    lag_seconds: float | None = None
    """From the bus's clock at the newest finding to its being taken."""


class ReportOutcome(StrEnum):
    """What came of a report to a gateway that pages. Every value is a metric label and starts at zero."""

    TAKEN = "taken"
    """Every page that it called for was taken by a receiver, now or before."""
    QUIET = "quiet"
    """It called for no page: nothing critical, an end, or late evidence."""
    NOT_TAKEN = "not_taken"
    """No receiver has taken a page yet: whoever reports tries again."""
    REFUSED = "refused"
    """What cannot be read."""


@dataclass(slots=True)
class PagerStats:
    """What a gateway's pager counts: reports, and as ``sending`` the tries to deliver."""

    reports_total: dict[ReportOutcome, int] = field(default_factory=lambda: dict.fromkeys(ReportOutcome, 0))
    sending: Stats = field(default_factory=Stats)
