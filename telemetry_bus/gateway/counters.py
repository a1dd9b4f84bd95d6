"""What a gateway counts. All but those that say ``now`` only grow; every label starts at zero."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from telemetry_bus.errors import FrameFault
from telemetry_bus.gateway.entry import FROM_BELOW
from telemetry_bus.gateway.wire import Answered, LinkFault
from telemetry_bus.topics import Topic


class ReportOutcome(StrEnum):
    """What became of a report."""

    PUBLISHED = "published"
    PAGED = "paged"
    NOT_TAKEN = "not_taken"


def _topics() -> Counter[Topic]:
    return Counter(dict.fromkeys(sorted(FROM_BELOW), 0))


@dataclass(slots=True)
class GatewayCounters:
    """Frames that came in and were good, frames that are durable upstream, and everything that was not."""

    frames_in: Counter[Topic] = field(default_factory=_topics)
    rows_in: Counter[Topic] = field(default_factory=_topics)
    bytes_in: int = 0
    frames_out: Counter[Topic] = field(default_factory=_topics)
    """With :attr:`frames_in` this is the merging's ratio."""
    rows_out: Counter[Topic] = field(default_factory=_topics)
    bytes_out: int = 0
    refused: Counter[FrameFault] = field(default_factory=lambda: Counter(dict.fromkeys(FrameFault, 0)))
    """Frames that will never be taken."""
    put_off: Counter[Answered] = field(default_factory=lambda: Counter(dict.fromkeys(Answered, 0)))
    """Frames whose sender was asked to come again."""
    upstream_failures: int = 0
    reports: Counter[ReportOutcome] = field(default_factory=lambda: Counter(dict.fromkeys(ReportOutcome, 0)))
    links: int = 0
    links_now: int = 0
    links_ended: Counter[LinkFault] = field(default_factory=lambda: Counter(dict.fromkeys(LinkFault, 0)))
    """Connections that were refused or ended by the gateway."""
