"""What a kafka:// URL may say."""

from __future__ import annotations

import pytest

from telemetry_bus import Topic, UnknownBus, open_bus
from telemetry_bus.kafka.address import parse
from telemetry_bus.runtime.clock import ManualClock


@pytest.mark.parametrize(
    ("url", "servers", "name"),
    [
        pytest.param("kafka://a:9093", ("a:9093",), "telemetry.gpu", id="one server"),
        pytest.param("kafka://a,b:1/", ("a:9092", "b:1"), "telemetry.gpu", id="two, the port left out"),
        pytest.param("kafka://a/site-1", ("a:9092",), "site-1.telemetry.gpu", id="a prefix"),
        pytest.param("kafka://[::1]:9092/x", ("[::1]:9092",), "x.telemetry.gpu", id="an IPv6 address"),
    ],
)
def test_a_url_names_servers_and_a_prefix_of_all_topics(url: str, servers: tuple[str, ...], name: str) -> None:
    """Several Nantuckets may share a cluster, each under a prefix of its own."""
    address = parse(url)
    assert address.servers == servers
    assert address.name(Topic.GPU) == name
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://a:99999",
        "kafka://a:x",
        "kafka://a:0",
        "kafka://a/b/c",
        "kafka://a/sp ace",
        "kafka://a?prefix=b",
        "kafka://a,,b",
        "kafka://[::1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """A slip in a URL is said at once, and not found out as a cluster that is away."""
    with pytest.raises(UnknownBus, match="kafka://HOST:PORT"):
        open_bus(url, ManualClock())


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    """A URL is printed in logs and on pages: no secret belongs there."""
    with pytest.raises(UnknownBus) as refused:
        open_bus("kafka://user:hunter2@a:9092", ManualClock())
    assert "hunter2" not in str(refused.value)
    assert "kafka.password" in str(refused.value)
