"""The figures of a role that serves no page."""

import asyncio
from collections.abc import Iterable

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.metrics_core import GaugeMetricFamily

from app.figures import figures
from app.settings import SettingsError
from app.telemetry import Gauges
from dashboards.errors import CannotListen, TokenRequired
from telemetry_bus.runtime.secret import Secret


def gauges() -> Gauges:
    """One figure, which says in which thread it was read."""

    def read() -> Iterable[Metric]:
        asyncio.get_running_loop()  # raises outside the loop
        yield GaugeMetricFamily("nantucket_x", "X.", value=7)

    made = Gauges()
    made.add(read)
    return made


async def test_the_figures_are_read_in_the_loop_and_nothing_else_is_told() -> None:
    """/metrics is OpenMetrics, /healthz says ok, and the rest is not there."""
    async with figures(gauges(), "127.0.0.1", 0, None) as port, httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert "nantucket_x 7.0" in answer.text
        assert (await http.get(f"http://127.0.0.1:{port}/healthz")).text == "ok\n"
        assert (await http.get(f"http://127.0.0.1:{port}/")).status_code == 404
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/healthz")


async def test_with_a_token_only_who_shows_it_reads_the_figures() -> None:
    """A probe has none, and learns that the process lives."""
    async with figures(gauges(), "0.0.0.0", 0, Secret("right")) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/metrics"
        assert (await http.get(url)).status_code == 401
        assert (await http.get(url, headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get(url, headers={"Authorization": "Bearer right"})).status_code == 200
        assert (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("host", "error", "words"),
    [
        ("0.0.0.0", TokenRequired, "without a token"),
        ("::1", SettingsError, "metrics.host"),
    ],
)
async def test_an_address_that_cannot_be_is_refused(host: str, error: type[Exception], words: str) -> None:
    """What others could reach needs a token; what this server does not know is named."""
    with pytest.raises(error, match=words):
        async with figures(gauges(), host, 0, None):
            pass


async def test_a_port_that_is_taken_is_said() -> None:
    """With its address."""
    async with figures(gauges(), "127.0.0.1", 0, None) as port:
        with pytest.raises(CannotListen, match=str(port)):
            async with figures(gauges(), "127.0.0.1", port, None):
                pass
