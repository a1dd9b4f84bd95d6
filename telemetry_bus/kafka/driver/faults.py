"""librdkafka's errors as ours, with what the driver has said meanwhile about its connections."""

import logging
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from telemetry_bus.errors import BusUnavailable, TopicMissing, UnusableCredentials
from telemetry_bus.kafka.settings import Setting

_log = logging.getLogger(__name__)

_MISSING = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError._NOENT}
)
_GROUP = frozenset(
    {
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.INVALID_REPLICATION_FACTOR,
    }
)
"""What a broker may say about groups. The driver's reader asks for a group's coordinator though it joins none; whether
there is one, and whether this user may know, is all the same to us."""


class Faults:
    """Hears what the driver says from its threads, and makes our errors of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.all_down = False
        self._newest: str | None = None

    def hear(self, error: KafkaError) -> None:
        """The driver's ``error_cb``."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.all_down = True
        elif error.code() not in _GROUP:
            self._newest = error.str()

    def worked(self) -> None:
        """A broker has answered."""
        self.all_down = False
        self._newest = None

    def unavailable(self, action: str, error: KafkaError | None = None) -> BusUnavailable:
        """That the cluster could not ``action``, and the newest reason that is known."""
        said = None if error is None else error.str()
        newest = self._newest if self._newest != said else None
        reasons = [text for text in (said, newest) if text is not None]
        return BusUnavailable(self.url, action, RuntimeError("; ".join(reasons) or "no broker answers"))

    def of(self, error: KafkaError, action: str, topic: str | None = None) -> BusUnavailable:
        """Our error for the driver's."""
        if topic is not None and error.code() in _MISSING:
            return TopicMissing(self.url, topic)
        return self.unavailable(action, error)

    def concerns_groups(self, error: KafkaError) -> bool:
        """Whether it is only about groups, of which we have none."""
        return error.code() in _GROUP


def made(kind: Callable[..., Any], settings: dict[str, Setting], faults: Faults, **more: object) -> Any:
    """A client of the driver. Raises :class:`UnusableCredentials` where it cannot use what it was given."""
    try:
        return kind({**settings, "error_cb": faults.hear, "logger": _log, **more})
    except (KafkaException, ValueError, TypeError) as error:
        cause = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        files = [str(value) for key, value in settings.items() if key.endswith(".location")]
        what = f"the client of {faults.url} cannot be set up: what it was given ({', '.join(files) or 'no files'})"
        raise UnusableCredentials(what, cause) from None
