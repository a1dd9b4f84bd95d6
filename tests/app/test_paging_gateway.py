"""A gateway pages where its configuration has receivers, and tells its figures from the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from alerting import Outcome, PagerStats, ReceiptOutcome, ReportOutcome, Stats
from app.roles.alert import pager_of
from app.settings import Settings, load
from app.telemetry import alert_metrics, pager_metrics
from telemetry_bus.runtime.clock import SystemClock
from tests.fakes.webhook_server import SECRET


def configured(folder: Path, tiers: str) -> Settings:
    """What a file with one receiver of ``tiers`` gives."""
    file = folder / "nantucket.toml"
    file.write_text(f"[receivers.ops]\nurl = 'http://127.0.0.1:9/x'\nsecret = '{SECRET}'\ntiers = {tiers}\n")
    return load(file, {})


def test_a_gateway_with_a_receiver_of_pages_pages(tmp_path: Path) -> None:
    """The receivers' secrets lie with gateways: a configuration with them is all that paging needs."""
    assert pager_of(configured(tmp_path, "['page', 'ticket']"), SystemClock()) is not None


@pytest.mark.parametrize("tiers", ["['ticket']", None])
def test_a_gateway_without_a_receiver_of_pages_does_not(tmp_path: Path, tiers: str | None) -> None:
    """It passes reports up and says that it cannot page, which a collector takes as "not told yet"."""
    settings = load(None, {}) if tiers is None else configured(tmp_path, tiers)
    assert pager_of(settings, SystemClock()) is None


def test_receipts_and_reports_are_counted_from_zero() -> None:
    """Every reason is a label from the start, so that an alert on its increase works the first time."""
    values = {
        (sample.name, sample.labels["outcome"]): sample.value
        for metric in (*alert_metrics(Stats()), *pager_metrics(PagerStats(), 0))
        for sample in metric.samples
        if "outcome" in sample.labels
    }
    expected = {
        "nantucket_delivery_receipts_total": ReceiptOutcome,
        "nantucket_ripcord_reports_total": ReportOutcome,
        "nantucket_ripcord_page_tries_total": Outcome,
    }
    for name, outcomes in expected.items():
        assert {outcome for metric, outcome in values if metric == name} == set(outcomes)
    assert set(values.values()) == {0.0}
