"""What Nantucket says to Prometheus, as OpenMetrics, from a registry of its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from dashboards import losses, views
from dashboards.arrow_stream import ArrowMessages
from dashboards.fleet import HEAT_METRICS, Array, FleetState
from dashboards.incidents import IncidentFeed
from dashboards.live import Live
from dashboards.stream import Broadcast
from telemetry_bus.fanout import FanOut
from telemetry_bus.runtime.clock import Clock

GPUS_EXPORTED_MAX = 4_096
"""Five series a GPU: a scrape of 20,000 series and some 3 MB. A larger fleet is exported by its nodes."""

CONTENT_TYPE = CONTENT_TYPE_LATEST


class LiveCollector(Collector):
    """The numbers of the live state, made when they are asked for."""

    def __init__(
        self, live: Live, fan: FanOut, broadcast: Broadcast, feed: IncidentFeed, arrow: ArrowMessages, clock: Clock
    ) -> None:
        self._live, self._fan, self._broadcast, self._feed, self._clock = live, fan, broadcast, feed, clock
        self._arrow = arrow

    def collect(self) -> Iterable[Metric]:
        """Every family, with every label that it can have."""
        yield from self._frames()
        yield from self._losses()
        yield from self._readers()
        yield from self._regions()
        yield from self._spools()
        yield labelled(
            GaugeMetricFamily,
            "nantucket_incidents_open",
            "Incidents that are firing.",
            "tier",
            self._feed.open_by_tier(),
        )
        yield _counter(
            "nantucket_store_failures", "Times that the incident store could not be read.", self._feed.failures
        )
        ages = HistogramMetricFamily("nantucket_live_age_seconds", "Age of rows when the live state shows them.")
        ages.add_metric([], list(self._live.ages.cumulative()), self._live.ages.sum_seconds)
        yield ages
        yield _gauge("nantucket_jobs", "Jobs that are shown.", len(self._live.jobs.jobs))
        yield from self._fleet()

    def _frames(self) -> Iterator[Metric]:
        counts = self._live.frame_counts()
        by_topic = {str(topic): count for topic, count in self._live.frames.items()}
        yield labelled(CounterMetricFamily, "nantucket_frames", "Frames read from the bus.", "topic", by_topic)
        yield _gauge(
            "nantucket_frames_outstanding",
            "Frames made but not here yet; a backlog may fill them.",
            counts["outstanding"],
        )
        yield _counter(
            "nantucket_sources_forgotten",
            "Sources forgotten for the bound on their number: of these no loss is known any more.",
            self._live.intake.ledger.forgotten_total,
        )
        yield _counter("nantucket_frames_lost", "Frames that were outstanding for too long: final.", counts["lost"])
        yield _counter("nantucket_frames_duplicate", "Frames that came again.", counts["duplicate"])
        refused = {reason.value: count for reason, count in self._live.intake.refused.items()}
        yield labelled(
            CounterMetricFamily, "nantucket_frames_refused", "Frames or rows that were refused.", "reason", refused
        )

    def _losses(self) -> Iterator[Metric]:
        by_source = losses.by_source(self._live.intake.ledger)
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield labelled(
            gauge, "nantucket_source_frames_outstanding", "Of one source.", "source", by_source["outstanding"]
        )
        yield labelled(counter, "nantucket_source_frames_lost", "Of one source.", "source", by_source["lost"])
        yield labelled(counter, "nantucket_source_frames_duplicate", "Of one source.", "source", by_source["duplicate"])

    def _regions(self) -> Iterator[Metric]:
        lines = views.region_lines(self._live.fleet, self._live.intake.regions, self._clock.now())
        now, gauge = self._clock.now(), GaugeMetricFamily
        ages = {line["region"]: now - line["last_frame"] for line in lines}
        yield labelled(gauge, "nantucket_region_last_frame_age_seconds", "Since the newest frame.", "region", ages)
        gpus = {line["region"]: line["reporting"] for line in lines}
        yield labelled(gauge, "nantucket_region_gpus", "GPUs that have reported lately.", "region", gpus)
        away = sum(state.away_since is not None for state in self._live.buses())
        yield _gauge("nantucket_buses_away", "Buses, of several, that cannot be reached.", away)

    def _spools(self) -> Iterator[Metric]:
        total = self._live.spools.total(self._clock.now())
        yield _gauge("nantucket_spool_nodes", "Nodes whose collector has frames that wait on its disk.", total["nodes"])
        yield _gauge("nantucket_spool_frames", "Frames that wait on nodes' disks.", total["frames"])
        yield _gauge("nantucket_spool_bytes", "Bytes that wait on nodes' disks.", total["bytes"])
        yield _gauge("nantucket_spool_oldest_seconds", "Age of the oldest of them.", total["oldest_seconds"] or 0.0)

    def _readers(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "nantucket_reader_lag_seconds", "Longest wait between bus and dashboard in the last second."
        )
        if self._live.lag_seconds is not None:
            lag.add_metric([], self._live.lag_seconds)
        yield lag
        by_topic = {str(topic): seconds for topic, seconds in self._live.topic_lag_seconds.items()}
        yield labelled(GaugeMetricFamily, "nantucket_topic_lag_seconds", "The same, of one topic.", "topic", by_topic)
        yield _gauge("nantucket_bus_available", "1 while the bus can be read, else 0.", int(self._fan.available))
        yield _counter("nantucket_bus_reads", "Reads of the bus by the fan-out.", self._fan.bus_reads)
        yield _gauge("nantucket_fanout_readers", "Readers of the fan-out, the page's own included.", self._fan.readers)
        yield _counter("nantucket_fanout_skipped", "Records that slow readers were moved past.", self._fan.skipped)
        yield _counter("nantucket_arrow_messages_made", "Arrow messages made, each for all.", self._arrow.made)
        yield _counter("nantucket_arrow_messages_sent", "Arrow messages that readers were given.", self._arrow.sent)
        yield _gauge("nantucket_sse_clients", "Browsers that follow the stream.", self._broadcast.clients)
        yield _counter("nantucket_sse_skipped", "Events that slow browsers were moved past.", self._broadcast.skipped)

    def _fleet(self) -> Iterator[Metric]:
        fleet, stale = self._live.fleet, self._live.fleet.stale(self._clock.now())
        yield _gauge("nantucket_gpus", "GPUs that are known.", fleet.count)
        yield _gauge("nantucket_gpus_stale", "GPUs that have been silent for more than 10 s.", int(stale.sum()))
        yield _counter(
            "nantucket_gpu_rows_over_limit",
            "GPU rows left out: the fleet is larger than the view.",
            fleet.rows_over_limit,
        )
        users = self._live.gpu_users
        yield _counter(
            "nantucket_gpu_users_refused",
            "Events about a GPU's users that say nothing, or are of a node with too many GPUs.",
            users.events_refused + users.places_over_limit,
        )
        if fleet.count <= GPUS_EXPORTED_MAX:
            yield from gpu_families(fleet, np.flatnonzero(~stale))


def gpu_families(fleet: FleetState, slots: Array) -> Iterator[Metric]:
    """The newest reading of each GPU in ``slots``; absent values are left out, NaN is NaN."""
    columns = fleet.columns
    labels = [
        (
            slot,
            [
                fleet.nodes[columns.node[slot]],
                str(columns.gpu[slot]),
                uuid or "",
                "true" if columns.simulated[slot] else "false",
            ],
        )
        for slot, uuid in zip(slots.tolist(), fleet.uuids(slots), strict=True)
    ]
    for at, metric in enumerate(HEAT_METRICS):
        name = metric.name if metric.name.startswith("gpu_") else f"gpu_{metric.name}"
        family = GaugeMetricFamily(
            f"nantucket_{name}", f"{metric.title} of a GPU.", labels=["node", "gpu", "uuid", "simulated"]
        )
        for slot, values in labels:
            if columns.valid[at, slot]:
                family.add_metric(values, float(columns.values[at, slot]))
        yield family


def labelled(
    kind: Callable[..., GaugeMetricFamily] | Callable[..., CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    """A family with one label."""
    family = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry as OpenMetrics text."""
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
