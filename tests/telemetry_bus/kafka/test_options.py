"""What the driver is told: security as it was configured, and what each profile is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry_bus import BusUnavailable
from telemetry_bus.errors import UnusableCredentials
from telemetry_bus.kafka import KafkaOptions
from telemetry_bus.kafka.driver import Faults, Producer
from telemetry_bus.kafka.settings import connection, consumer, producer
from telemetry_bus.runtime.secret import Secret

SERVERS = ("a:9092", "b:9092")


def test_security_is_passed_through() -> None:
    """SASL and TLS settings reach the driver under its own names."""
    options = KafkaOptions("sasl_ssl", "SCRAM-SHA-256", "me", Secret("secret"), Path("ca"), Path("cert"), Path("key"))
    settings = connection(SERVERS, options)
    assert settings["bootstrap.servers"] == "a:9092,b:9092"
    assert settings["security.protocol"] == "sasl_ssl"
    assert settings["sasl.mechanism"] == "SCRAM-SHA-256"
    assert (settings["sasl.username"], settings["sasl.password"]) == ("me", "secret")
    places = [settings[f"ssl.{name}.location"] for name in ("ca", "certificate", "key")]
    assert places == ["ca", "cert", "key"]


def test_without_security_nothing_of_it_is_set() -> None:
    """A plain cluster is not asked for what it lacks."""
    assert [key for key in connection(SERVERS, KafkaOptions()) if key.startswith(("sasl.", "ssl."))] == []


def test_no_secret_is_shown() -> None:
    """Options may be printed."""
    assert "hunter2" not in repr(KafkaOptions(password=Secret("hunter2")))


@pytest.mark.parametrize("profile", ["default", "warpstream"])
def test_every_profile_is_durable_and_joins_no_group(profile: str) -> None:
    """Whatever is tuned: all replicas acknowledge, within a bounded time, and no offset is stored in a group."""
    options = KafkaOptions(profile=profile)  # type: ignore[arg-type]
    sending, reading = producer(options), consumer(options)
    assert sending["acks"] == "all"
    assert sending["message.timeout.ms"] == options.timeout_seconds * 1000
    assert reading["enable.auto.commit"] is False
    assert reading["enable.auto.offset.store"] is False
    assert reading["auto.offset.reset"] == "earliest"


def test_a_time_limit_of_its_own_wins_over_the_profile() -> None:
    """What was configured is what holds."""
    assert KafkaOptions().timeout_seconds < KafkaOptions(profile="warpstream").timeout_seconds
    assert producer(KafkaOptions(produce_timeout_seconds=1.5))["message.timeout.ms"] == 1500


def test_a_zone_is_told_as_each_kind_of_cluster_wants_it() -> None:
    """WarpStream reads it in the client's id; others take it as the rack whose replica is the nearest."""
    default = connection(SERVERS, KafkaOptions(zone="eu-1a"))
    warpstream = connection(SERVERS, KafkaOptions(zone="eu-1a", profile="warpstream"))
    assert (default["client.id"], default["client.rack"]) == ("nantucket", "eu-1a")
    assert warpstream["client.id"] == "warpstream_az=eu-1a,nantucket"
    assert "client.rack" not in warpstream
    assert connection(SERVERS, KafkaOptions(profile="warpstream"))["client.id"] == "nantucket"


@pytest.mark.parametrize("profile", ["default", "warpstream"])
def test_the_driver_takes_every_setting(profile: str) -> None:
    """A name that a new version of the driver no longer knows is found here."""
    options = KafkaOptions(profile=profile, zone="z", produce_timeout_seconds=0.1)  # type: ignore[arg-type]
    made = Producer(connection(("127.0.0.1:1",), options) | producer(options), Faults("kafka://nowhere"))
    try:
        with pytest.raises(BusUnavailable, match="kafka://nowhere"):
            made.partitions("telemetry.gpu", 0.1)
    finally:
        made.close()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A wrong path is no cluster that is away."""
    options = KafkaOptions("ssl", ca_file=tmp_path / "missing.pem")
    with pytest.raises(UnusableCredentials, match=r"missing\.pem"):
        Producer(connection(SERVERS, options) | producer(options), Faults("kafka://nowhere"))
