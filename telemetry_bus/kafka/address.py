"""What a ``kafka://`` URL says: the servers to begin with, and a prefix of all topic names."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from telemetry_bus.errors import UnknownBus
from telemetry_bus.topics import Topic

PORT = 9092
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,100}")
POSITIONS = "positions"
"""The topic of our own in which readers' positions and the log's identity are kept."""


@dataclass(frozen=True, slots=True)
class Address:
    """``kafka://a:9092,b:9092/site1``: ask ``a`` or ``b``, and call the topics ``site1.telemetry.gpu`` and so on."""

    servers: tuple[str, ...]
    prefix: str = ""

    def name(self, topic: Topic | str) -> str:
        """What ``topic`` is called on the cluster."""
        return f"{self.prefix}.{topic}" if self.prefix else str(topic)

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}" + (f"/{self.prefix}" if self.prefix else "")


def parse(url: str) -> Address:
    """The address in ``url``. Raises :class:`UnknownBus`, without showing a user and password that stand in it."""
    if "@" in url:
        raise UnknownBus("kafka://...@..., with a user or password in it: set kafka.username and kafka.password")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UnknownBus(url) from error
    servers = tuple(_server(server, url) for server in parts.netloc.split(","))
    prefix = parts.path.removeprefix("/")
    if parts.scheme != "kafka" or parts.query or parts.fragment or (prefix and not _PREFIX.fullmatch(prefix)):
        raise UnknownBus(url)
    return Address(servers, prefix)


def _server(text: str, url: str) -> str:
    found = _SERVER.fullmatch(text)
    if found is None or not 0 < int(found[2] or PORT) < 1 << 16:
        raise UnknownBus(url)
    return f"{found[1]}:{found[2] or PORT}"
