"""How a cluster is spoken to, in the driver's own words.

What each value is for, and which cluster wants which, stands in docs/kafka.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.kafka_options import KafkaOptions, ProfileName

Setting = str | int | bool

MESSAGE_BYTES_MAX = FRAME_BYTES_MAX + 64 * 1024
"""The largest frame, and the record batch and request around it (some 100 bytes; 64 KiB leave room for names)."""
SEND_QUEUE_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""What one process may have under way: four of the largest frames, or a second of the whole fleet (300,000 GPUs)."""
FETCH_PARTITION_BYTES = 1024 * 1024
"""One partition's part of an answer: small, so that all partitions come along in step. A larger record still comes."""
READ_AHEAD_KIB = 64 * 1024
"""What the driver fetches ahead of the reader, for all partitions of a subscription together: 0.8 s of 300,000 GPUs."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kind of cluster wants of its clients."""

    linger_ms: int
    idempotent: bool
    producer: Mapping[str, Setting]
    consumer: Mapping[str, Setting]


PROFILES: Mapping[ProfileName, Profile] = {
    "default": Profile(1, True, {}, {}),
    "warpstream": Profile(
        linger_ms=100,
        # An idempotent producer has one request a partition under way, at 0.4 s each. Repetition is dropped by the
        # ledger, which sees every frame's source and number.
        idempotent=False,
        producer={
            "batch.size": 16_000_000,
            "batch.num.messages": 100_000,
            "max.in.flight.requests.per.connection": 1_000_000,
            "topic.metadata.refresh.interval.ms": 60_000,
        },
        consumer={
            "fetch.max.bytes": 52_428_800,
            "fetch.wait.max.ms": 500,  # a request costs
            "topic.metadata.refresh.interval.ms": 60_000,
        },
    ),
}


def connection(servers: tuple[str, ...], options: KafkaOptions) -> dict[str, Setting]:
    """What producer, consumer and administrator have in common. It holds the password in clear: show it to nobody."""
    settings: dict[str, Setting] = {
        "bootstrap.servers": ",".join(servers),
        "client.id": _client_id(options),
        "security.protocol": options.security_protocol,
        "socket.keepalive.enable": True,
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,  # a broker that comes back is found within a second
        "topic.metadata.propagation.max.ms": 2000,  # a topic that is deleted is missed after two seconds, not thirty
        "log_level": 2,  # what goes wrong reaches the caller as an error, with its reason: not a line for each attempt
        "log.connection.close": False,
        "enable.metrics.push": False,
    }
    if options.zone is not None and options.profile == "default":
        settings["client.rack"] = options.zone
    if options.security_protocol.startswith("sasl"):
        settings["sasl.mechanism"] = options.sasl_mechanism
        settings["sasl.username"] = options.username or ""
        settings["sasl.password"] = "" if options.password is None else options.password.reveal()
    files = {"ca": options.ca_file, "certificate": options.cert_file, "key": options.key_file}
    return settings | {f"ssl.{name}.location": str(file) for name, file in files.items() if file is not None}


def producer(options: KafkaOptions) -> dict[str, Setting]:
    """What a producer is set to besides: durable or an error, within a bounded time."""
    profile = PROFILES[options.profile]
    timeout_ms = max(1, int(options.timeout_seconds * 1000))
    return {
        "acks": "all",
        "enable.idempotence": profile.idempotent,
        "linger.ms": min(profile.linger_ms, timeout_ms // 2),
        "message.timeout.ms": timeout_ms,
        "message.max.bytes": MESSAGE_BYTES_MAX,
        # Twice our own bound, so that it is ours that speaks; and no bound on the number of small ones below it.
        "queue.buffering.max.kbytes": 2 * SEND_QUEUE_BYTES_MAX // 1024,
        "queue.buffering.max.messages": 0,
        **profile.producer,
    }


def consumer(options: KafkaOptions) -> dict[str, Setting]:
    """What a reader is set to besides: it joins no group and commits nothing there."""
    return {
        # The driver wants a name here even of a reader that assigns its partitions itself. Nothing is stored under it.
        "group.id": "nantucket-joins-no-group",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "max.poll.interval.ms": 86_400_000,  # a reader may take its time; nobody takes its partitions over
        # A broker answers at once when there is something; a partition that is resumed waits for the answer under way.
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 10,
        "fetch.error.backoff.ms": 100,
        "fetch.message.max.bytes": FETCH_PARTITION_BYTES,
        "fetch.max.bytes": 2 * FRAME_BYTES_MAX,
        "receive.message.max.bytes": 64 * 1024 * 1024,
        "queued.max.messages.kbytes": READ_AHEAD_KIB,
        "queued.min.messages": 1000,
        "socket.timeout.ms": 10_000,
        **PROFILES[options.profile].consumer,
    }


def _client_id(options: KafkaOptions) -> str:
    """WarpStream reads comma-separated pairs in it; for others it is a name in the broker's logs."""
    zone = f"warpstream_az={options.zone}," if options.profile == "warpstream" and options.zone is not None else ""
    return f"{zone}nantucket"
