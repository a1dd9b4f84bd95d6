"""TLS, passwords and rights, against a real broker that insists on them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import admin as kafka_admin

from telemetry_bus import BusUnavailable, Earliest, Topic, open_bus
from telemetry_bus.errors import UnusableCredentials
from telemetry_bus.kafka import KafkaBus, KafkaOptions
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from tests.kafka_service import PASSWORD, USER
from tests.telemetry_bus.kafka.reading import everything

if TYPE_CHECKING:
    from tests.kafka_service import KafkaService


def grant(kafka: KafkaService, prefix: str) -> None:
    """Let the user read, write and see topics under a prefix, and nothing else: no group, no cluster."""
    names: Any = kafka_admin  # documented names that its type information lacks
    where = (names.ResourceType.TOPIC, prefix, names.ResourcePatternType.PREFIXED, f"User:{USER}", "*")
    operations = (names.AclOperation.READ, names.AclOperation.WRITE, names.AclOperation.DESCRIBE)
    rights = [names.AclBinding(*where, operation, names.AclPermissionType.ALLOW) for operation in operations]
    client = kafka_admin.AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in client.create_acls(rights).values():
        future.result()


@pytest.fixture
def secured_url(kafka: KafkaService) -> str:
    """Return the URL of topics that the user with the password may use, through the listener that insists on it."""
    prefix = kafka.url(partitions=2).rpartition("/")[2]
    grant(kafka, prefix)
    return f"kafka://{kafka.secured}/{prefix}"


async def test_tls_and_a_password_are_all_it_takes_to_use_the_bus(kafka: KafkaService, secured_url: str) -> None:
    """With our certificate, and no right on any group: reading joins none, and positions are in our own topic."""
    async with open_bus(secured_url, SystemClock(), kafka.certificates.options) as bus:
        await bus.publish(Topic.GPU, [b"frame"], "node-1")
        assert [record.payload for record in await everything(bus, [Topic.GPU])] == [b"frame"]
        await bus.commit("detect", {Topic.GPU: {0: 1}})
        assert await bus.committed("detect") == {Topic.GPU: {0: 1}}
        assert await bus.identity()


async def test_a_wrong_password_is_said_and_no_password_is_shown(kafka: KafkaService, secured_url: str) -> None:
    """Who reads the log learns what is wrong, and nothing that opens a door."""
    wrong = replace(kafka.certificates.options, password=Secret("not the password"), produce_timeout_seconds=1.0)
    async with KafkaBus(secured_url, SystemClock(), wrong) as bus:

        async def subscribe() -> None:
            async with bus.subscribe([Topic.GPU], Earliest()):
                pass

        for call in (bus.publish(Topic.GPU, [b"frame"]), bus.ends(Topic.GPU), subscribe()):
            with pytest.raises(BusUnavailable, match=r"[Aa]uthentication") as refused:
                await call
            assert PASSWORD not in str(refused.value)
            assert "not the password" not in str(refused.value)


async def test_a_broker_of_another_authority_is_not_spoken_to(kafka: KafkaService, secured_url: str) -> None:
    """A certificate that our authority has not signed is refused before any password is sent."""
    options = replace(kafka.certificates.options, ca_file=None, produce_timeout_seconds=1.0)
    async with KafkaBus(secured_url, SystemClock(), options) as bus:
        with pytest.raises(BusUnavailable, match="certificate"):
            await bus.publish(Topic.GPU, [b"frame"])


async def test_topics_without_the_right_to_them_are_refused_by_name(kafka: KafkaService) -> None:
    """What this user may not read is not read, and said."""
    prefix = kafka.url(partitions=1).rpartition("/")[2]
    options = replace(kafka.certificates.options, produce_timeout_seconds=1.0)
    async with KafkaBus(f"kafka://{kafka.secured}/{prefix}", SystemClock(), options) as bus:
        with pytest.raises(BusUnavailable, match=r"[Aa]uthoriz"):
            await bus.publish(Topic.GPU, [b"frame"])
        with pytest.raises(BusUnavailable, match=r"[Aa]uthoriz"):
            await bus.ends(Topic.GPU)


async def test_a_key_that_is_none_is_said_before_anything_is_sent(kafka: KafkaService, tmp_path: Path) -> None:
    """A wrong file is a wrong configuration, and no cluster that is away."""
    rubbish = tmp_path / "client.key"
    await asyncio.to_thread(rubbish.write_text, "no key")
    options = replace(kafka.certificates.options, key_file=rubbish)
    async with KafkaBus(f"kafka://{kafka.secured}", SystemClock(), options) as bus:
        for call in (bus.publish(Topic.GPU, [b"frame"]), bus.ends(Topic.GPU)):
            with pytest.raises(UnusableCredentials, match=r"client\.key"):
                await call


def test_options_with_a_password_may_be_printed() -> None:
    """A password is shown nowhere."""
    assert PASSWORD not in repr(KafkaOptions(password=Secret(PASSWORD)))
