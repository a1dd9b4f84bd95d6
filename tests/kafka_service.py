"""A real Kafka for the tests: one broker a session, with every way in that is needed, and brokers of a test's own."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from app.bench.kafka_broker import BrokerOptions, KafkaBroker, Listener, free_port
from telemetry_bus.kafka import KafkaOptions, create_topics
from telemetry_bus.runtime.secret import Secret

USER, PASSWORD = "collector", "correct horse battery staple"
PARTITIONS = 4
TOPIC_INDEX_BYTES = 64 * 1024
"""A session makes thousands of partitions, and a broker maps two index files for each."""
SMALL = {"log.index.size.max.bytes": str(TOPIC_INDEX_BYTES)}


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a broker's key with its certificate, and a client's."""

    folder: Path

    @property
    def options(self) -> KafkaOptions:
        """How the secured listener is spoken to: TLS with our own certificate, and a password."""
        return KafkaOptions(
            "sasl_ssl",
            "PLAIN",
            USER,
            Secret(PASSWORD),
            self.folder / "ca.pem",
            self.folder / "client.pem",
            self.folder / "client.key",
        )

    def make(self, openssl: Path) -> None:
        """Make them; they are good for a day."""
        self.folder.mkdir()
        extension = self.folder / "extension"
        extension.write_text("subjectAltName=IP:127.0.0.1\n")
        key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]

        def run(*words: str) -> None:
            subprocess.run([str(openssl), *words], cwd=self.folder, check=True, capture_output=True)

        run(*key, "-x509", "-days", "1", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem")
        for name in ("broker", "client"):
            run(*key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", str(extension)]
            run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
        both = (self.folder / "broker.key").read_text() + (self.folder / "broker.pem").read_text()
        (self.folder / "broker.both.pem").write_text(both)

    def listener(self, port: int) -> Listener:
        """A way in that wants a certificate of ours and a password."""
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        return Listener(
            "SASL_SSL",
            port,
            {
                "sasl.enabled.mechanisms": "PLAIN",
                "plain.sasl.jaas.config": f'{login} user_{USER}="{PASSWORD}";',
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.folder / "broker.both.pem"),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.folder / "ca.pem"),
                "ssl.client.auth": "required",
            },
        )


@dataclass(frozen=True)
class KafkaService:
    """The session's broker: ``bootstrap`` for everybody, ``secured`` with TLS and a password, ``far`` behind a proxy.

    Clients that come in through ``far`` are told to speak to ``proxy_port``, where a test may slow them down.
    """

    bootstrap: str
    secured: str
    far_port: int
    proxy_port: int
    certificates: Certificates
    portal: BlockingPortal

    def url(self, partitions: int = PARTITIONS) -> str:
        """A bus of its own: topics under a prefix that nobody else has."""
        url = f"kafka://{self.bootstrap}/t{uuid.uuid4().hex[:12]}"
        self.portal.call(_create, url, partitions)
        return url


async def _create(url: str, partitions: int) -> None:
    await create_topics(url, KafkaOptions(), partitions=partitions)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, service_binary: Callable[[str], Path]) -> Iterator[KafkaService]:
    """Return the session's broker."""
    service_binary("kafka")
    folder = tmp_path_factory.mktemp("kafka")
    certificates = Certificates(folder / "certificates")
    certificates.make(service_binary("openssl"))
    secured, far, proxy = free_port(), free_port(), free_port()
    # Who comes in without a name may do everything; the user with the password only what a test grants.
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    options = BrokerOptions(
        {"SECURED": certificates.listener(secured), "FAR": Listener("PLAINTEXT", far, advertised_port=proxy)},
        {"authorizer.class.name": authorizer, "super.users": "User:ANONYMOUS", **SMALL},
    )
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(KafkaBroker(folder / "broker", options)) as broker,
    ):
        yield KafkaService(broker.bootstrap, f"127.0.0.1:{secured}", far, proxy, certificates, portal)


@pytest.fixture
def own_broker(tmp_path: Path, service_binary: Callable[[str], Path]) -> KafkaBroker:
    """Return a broker of the test's own, not started: one that it may stop, kill and start again."""
    service_binary("kafka")
    return KafkaBroker(tmp_path / "broker", BrokerOptions(properties=SMALL))
