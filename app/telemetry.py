"""Nantucket's own figures: what the roles of this process count, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # a process carries its own roles alone
    from alerting.stats import PagerStats, Stats
    from alerting.verdicts import VerdictStats
    from collectors.agent import NodeAgent
    from collectors.ripcord import Ripcord
    from collectors.training_lanes import Counters
    from collectors.upward import Upward
    from collectors.verdict_desk import VerdictDesk
    from detectors.agents import AgentStats
    from telemetry_bus.dead_letter import DeadLetters
    from telemetry_bus.gateway import Gateway
    from telemetry_bus.gateway.ingest import Ingest

Read = Callable[[], Iterable[Metric]]


class Gauges(Collector):
    """Reads every role's plain counters when it is scraped; nothing is counted twice."""

    def __init__(self) -> None:
        self._reads: list[Read] = []

    def add(self, read: Read) -> None:
        """Let ``read`` be asked at each scrape."""
        self._reads.append(read)

    def collect(self) -> Iterable[Metric]:
        """All families of all roles."""
        for read in self._reads:
            yield from read()


def _counter(name: str, meaning: str, values: float | tuple[str, Mapping[Any, float]]) -> Metric:
    return _filled(CounterMetricFamily, name, meaning, values)


def _gauge(name: str, meaning: str, values: float | tuple[str, Mapping[Any, float]] | None) -> Metric:
    return _filled(GaugeMetricFamily, name, meaning, values)


def _filled(
    family: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    meaning: str,
    values: float | tuple[str, Mapping[Any, float]] | None,
) -> Metric:
    """A family with one value, with one for each value of a label, or (``None``: not known) with none."""
    label, numbers = values if isinstance(values, tuple) else ("", {"": values})
    metric = family(f"nantucket_{name}", meaning, labels=[label] if label else [])
    for value, number in numbers.items():
        if number is not None:
            metric.add_metric([str(value)] if label else [], number)
    return metric


def detector_metrics(stats: AgentStats, letters: DeadLetters) -> Iterable[Metric]:
    """What the detectors' feed and agents count."""
    yield _counter("findings", "Findings said, by detector.", ("detector", stats.findings))
    yield _counter("detector_errors", "Events on which a detector failed; each is logged.", ("detector", stats.errors))
    yield _gauge(
        "detector_lag_seconds",
        "Age of the oldest record that waits; 0 at the end of the log.",
        ("topic", stats.lag_seconds),
    )
    ages = HistogramMetricFamily("nantucket_detector_age_seconds", "Age of rows when the detectors have seen them.")
    ages.add_metric([], list(stats.ages.cumulative()), stats.ages.sum_seconds)
    yield ages
    yield _gauge("detector_in_flight_bytes", "Read and not yet dealt with.", stats.in_flight_bytes)
    yield _counter("dead_letters", "Refusals kept in the dead-letter topic.", letters.written)
    yield _counter(
        "dead_letters_only_counted", "Refusals beyond the topic's rate, or while it was away.", letters.only_counted
    )


def alert_metrics(stats: Stats) -> Iterable[Metric]:
    """What alerting counts."""
    yield _counter("alert_findings", "Findings taken for the first time.", stats.findings_total)
    yield _counter("alert_findings_again", "Findings that had been taken before.", stats.findings_again_total)
    yield _counter("alert_findings_refused", "Findings that could not be read.", stats.refused_total)
    yield _counter("delivery_tries", "Tries to deliver, by what came of them.", ("outcome", stats.tries_total))
    yield _counter("delivery_retries", "Tries after the first one.", stats.retries_total)
    yield _counter("delivery_direct", "Deliveries sent while the store was away.", stats.direct_total)
    yield _counter("delivery_direct_left_out", "Deliveries beyond those sent at once.", stats.direct_left_out_total)
    yield _counter(
        "delivery_receipts", "Receipts of gateways, by what they were good for.", ("outcome", stats.receipts_total)
    )
    yield _counter("alert_store_failures", "Times the store was away.", stats.store_failures_total)
    yield _counter("heartbeats", "Heartbeats sent.", stats.heartbeats_total)
    yield _counter(
        "heartbeats_withheld", "Heartbeats withheld because the watcher is blind.", stats.heartbeats_withheld_total
    )
    yield _gauge("deliveries", "Deliveries in the outbox, by state.", ("state", stats.deliveries))
    yield _gauge(
        "delivery_oldest_seconds", "Age of the oldest delivery that nobody took yet.", stats.oldest_undelivered_seconds
    )
    yield _gauge("alert_lag_seconds", "From the bus to alerting, for the newest finding.", stats.lag_seconds)


def pager_metrics(stats: PagerStats, waiting: int) -> Iterable[Metric]:
    """What a gateway that pages counts; ``waiting`` pages are on their way."""
    yield _counter("ripcord_reports", "Findings reported while the bus was away.", ("outcome", stats.reports_total))
    yield _counter("ripcord_page_tries", "Tries to page, by what came of them.", ("outcome", stats.sending.tries_total))
    yield _counter("ripcord_page_retries", "Tries after the first one.", stats.sending.retries_total)
    yield _gauge("ripcord_pages_waiting", "Pages on their way to a receiver.", waiting)


def gateway_metrics(gateway: Gateway) -> Iterable[Metric]:
    """What a gateway counts."""
    counted, letters = gateway.counters, gateway.letters
    yield _counter("gateway_frames_in", "Frames that came in and were good.", ("topic", counted.frames_in))
    yield _counter("gateway_rows_in", "Their rows.", ("topic", counted.rows_in))
    yield _counter("gateway_bytes_in", "Their bytes.", counted.bytes_in)
    yield _counter("gateway_frames_out", "Frames that are durable upstream, merged.", ("topic", counted.frames_out))
    yield _counter("gateway_rows_out", "Their rows.", ("topic", counted.rows_out))
    yield _counter("gateway_bytes_out", "Their bytes.", counted.bytes_out)
    yield _counter("gateway_refused", "Frames that will never be taken.", ("reason", counted.refused))
    yield _counter("gateway_put_off", "Frames to be sent again later.", ("reason", counted.put_off))
    yield _counter("gateway_upstream_failures", "Publishes that failed upstream.", counted.upstream_failures)
    yield _counter("gateway_reports", "Findings reported past an absent bus.", ("outcome", counted.reports))
    yield _counter("gateway_links_accepted", "Connections that came in.", counted.links)
    yield _counter("gateway_links_ended", "Connections refused or ended here.", ("reason", counted.links_ended))
    yield _counter("gateway_dead_letters", "Refused frames that were kept.", letters.written)
    yield _counter("gateway_dead_letters_only_counted", "Those beyond the bound.", letters.only_counted)
    yield _gauge("gateway_links", "Connections now.", counted.links_now)
    yield _gauge("gateway_in_flight_bytes", "Bytes under way to the bus.", gateway.room.used)
    yield _gauge("gateway_backlog_senders", "Links that are sending their backlog.", gateway.grants.sending)


def ingest_metrics(ingest: Ingest) -> Iterable[Metric]:
    """What a gateway counts of training rows as JSON, remote write and OTLP."""
    counted = ingest.counters
    requests = CounterMetricFamily(
        "nantucket_ingest_requests", "Requests, by entry and status of the answer.", labels=("path", "status")
    )
    for (path, status), count in sorted(counted.requests.items()):
        requests.add_metric([path, str(status)], count)
    yield requests
    yield _counter("ingest_train_rows", "Rows that came as JSON and are durable.", counted.train_rows)
    yield _counter("ingest_samples", "Samples that are durable in some row.", counted.samples)
    yield _counter("ingest_absent", "Samples that said that there is no value.", counted.absent)
    yield _counter("ingest_unmapped", "Samples that have no place here.", ("reason", counted.unmapped))
    yield _gauge("ingest_held_bytes", "Bytes of bodies and rows under way.", ingest.room.used)


def collector_metrics(agent: NodeAgent) -> Iterable[Metric]:
    """What the loop of a node counts."""
    counters = agent.counters
    yield _counter("collector_readings", "Readings of all sources.", counters.readings)
    yield _counter("collector_ticks_missed", "Readings left out because one took too long.", counters.ticks_missed)
    yield _counter("collector_rows", "Rows that are durable.", counters.rows_sent)
    yield _counter("collector_rows_dropped", "Rows dropped by the queue's bound.", counters.rows_dropped)
    yield _counter("collector_publish_retries", "Publishes that were tried again.", counters.publish_retries)
    yield _gauge("collector_queue_frames", "Frames that wait for the bus.", agent.queue_depth)
    yield _gauge(
        "collector_source_unavailable",
        "1 for a source that is to be read if it is there, and is not.",
        ("source", dict.fromkeys(agent.unavailable, 1.0)),
    )
    failures = CounterMetricFamily(
        "nantucket_collector_field_failures", "Fields that could not be read.", labels=["metric", "reason"]
    )
    for (metric, reason), number in counters.field_failures.items():
        failures.add_metric([metric, reason.value], number)
    yield failures


def way_up_metrics(upward: Upward, ripcord: Ripcord) -> Iterable[Metric]:
    """What a node's way up counts."""
    counters, spool, depth = upward.counters, upward.spool, upward.depth
    yield _gauge("spool_frames", "Frames that wait on this node's disk.", depth.frames)
    yield _gauge("spool_bytes", "Their bytes.", depth.bytes)
    yield _gauge("spool_oldest_seconds", "Age of the oldest of them.", depth.oldest_seconds)
    yield _counter("spool_frames_in", "Frames that went to the spool.", counters.frames_spooled)
    yield _counter("spool_frames_dropped", "Frames that the spool's bounds took.", spool.frames_dropped)
    yield _counter("spool_rows_dropped", "Their rows.", spool.rows_dropped)
    yield _counter("backlog_frames_sent", "Frames of the spool that are durable as backlog.", counters.backlog_frames)
    yield _counter("backlog_bytes_sent", "Bytes of the merged frames that carried them.", counters.backlog_bytes)
    yield _gauge("bus_away", "1 while this node's frames go to the spool.", float(upward.away))
    yield _counter("bus_away_seconds", "For how long they went there.", counters.away_seconds)
    yield _counter("bus_outages", "How often that began.", counters.outages)
    yield _counter("ripcord_reports_sent", "Findings reported from here, by outcome.", ("outcome", ripcord.reports))
    yield _gauge("ripcord_findings_kept", "Findings that are not on the bus yet.", ripcord.unpublished)
    yield _counter("ripcord_detector_errors", "Frames on which a detector here failed.", ripcord.detector_errors)


def verdict_metrics(stats: VerdictStats) -> Iterable[Metric]:
    """What whoever issues verdicts counts."""
    yield _counter("verdicts_issued", "Jobs that were told to stop.", stats.issued)
    yield _counter("verdicts_held_back", "Findings of that kind that stopped nothing.", stats.held_back)


def verdict_desk_metrics(desk: VerdictDesk) -> Iterable[Metric]:
    """What a node counts of the verdicts that it hears."""
    yield _counter("verdicts_passed_on", "Verdicts said to training processes.", desk.passed_on)
    yield _counter("verdicts_unreadable", "What came as a verdict and is none.", desk.unreadable)


def listener_metrics(counters: Counters) -> Iterable[Metric]:
    """What the listener for training jobs counts."""
    yield _gauge("sdk_connections", "Training processes that are connected.", counters.connections_now)
    yield _counter("sdk_rows", "Rows of training jobs that are durable.", ("stream", counters.rows))
    yield _counter("sdk_refused", "Messages of training jobs that were refused.", ("reason", counters.refused))
    yield _counter("sdk_duplicates", "Messages that came again and were not published again.", counters.duplicates)
    yield _counter("sdk_rows_dropped", "Rows dropped by the SDKs' own bound.", counters.rows_dropped_by_sdks)
    yield _counter("sdk_publish_retries", "Publishes that were tried again.", counters.publish_retries)
