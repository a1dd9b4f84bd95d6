"""The closed set of topics, and the schema that each one carries."""

from enum import StrEnum


class Topic(StrEnum):
    """A topic of the bus."""

    GPU = "telemetry.gpu"
    """``gpu/1``: GPUs, sampled."""
    TRAIN = "telemetry.train"
    """``train/1``: ranks, step by step."""
    LINKS = "telemetry.links"
    """``link/1``: ports of network cards and NVLinks, sampled."""
    METRICS = "telemetry.metrics"
    """``metric/1``: named numbers of a job."""
    EVENTS = "telemetry.events"
    """``event/1``: things that happened."""
    BACKLOG = "telemetry.backlog"
    """Frames of any telemetry schema that come after an outage: evidence, which pages nobody."""
    TICKS = "ticks"
    """``tick/1``: the bus's clock, once a second."""
    FINDINGS = "findings"
    """``finding/1``: what detectors say."""
    VERDICTS = "verdicts"
    """``verdict/1``: the way back to a job."""
    DEAD_LETTER = "dead-letter"
    """``dead/1``: what could not be read, with its reason."""


TOPIC_SCHEMAS: dict[Topic, frozenset[str]] = {
    Topic.GPU: frozenset({"gpu/1"}),
    Topic.TRAIN: frozenset({"train/1"}),
    Topic.LINKS: frozenset({"link/1"}),
    Topic.METRICS: frozenset({"metric/1"}),
    Topic.EVENTS: frozenset({"event/1"}),
    Topic.BACKLOG: frozenset({"gpu/1", "train/1", "link/1", "metric/1", "event/1"}),
    Topic.TICKS: frozenset({"tick/1"}),
    Topic.FINDINGS: frozenset({"finding/1"}),
    Topic.VERDICTS: frozenset({"verdict/1"}),
    Topic.DEAD_LETTER: frozenset({"dead/1"}),
}

TELEMETRY: tuple[Topic, ...] = (Topic.GPU, Topic.TRAIN, Topic.LINKS, Topic.METRICS, Topic.EVENTS)
"""The topics that collectors write."""
