"""What can go wrong on the bus.

::

    BusError
    ├── FrameError              bytes that are no frame; ``reason`` is also the metric label
    │   └── FrameRefused        an outlet's far end will never take this frame
    ├── BusUnavailable          the log cannot be reached or written just now: try again (``retryable``)
    │   ├── LogRemoved          its file was deleted or replaced under an open bus
    │   ├── TopicMissing        the cluster has not got this topic: `nantucket bus init` makes it
    │   ├── OutletFull          a gateway has no room just now, and says after how many seconds to try again
    │   └── GatewayRefused      a gateway does not let this node in: its token, its certificate, its version
    ├── UnusableCredentials     a certificate, key or authority that TLS cannot use
    ├── TopicMismatch           topics are there, and are not as Nantucket needs them
    ├── BusClosed               used before it was opened or after it was closed
    ├── UnsuitableFolder        a folder on which the embedded log must not stand
    ├── InaccessibleFolder      a folder that cannot be made or written
    ├── UnreadableLog           the log's file is damaged, or no log that this version reads
    ├── InvalidPayload          what was given to publish is not bytes, or too large
    ├── UnknownBus              a bus URL of no known kind
    └── RepeatedBus             the same bus twice in one list
"""

from collections.abc import Sequence
from enum import StrEnum


class FrameFault(StrEnum):
    """Why bytes were refused as a frame. Every value is a metric label and starts at zero."""

    TOO_SHORT = "too_short"
    TOO_LARGE = "too_large"
    NOT_A_FRAME = "not_a_frame"
    CHECKSUM = "checksum"
    UNKNOWN_SCHEMA = "unknown_schema"
    WRONG_TOPIC = "wrong_topic"
    FOREIGN = "foreign"
    """What this sender must not send here: a finding or a tick from a node, say."""
    BAD_MANIFEST = "bad_manifest"
    BAD_BATCH = "bad_batch"
    COMPRESSED = "compressed"
    TOO_MANY_ROWS = "too_many_rows"
    ROWS_DISAGREE = "rows_disagree"
    REQUIRED_NULL = "required_null"
    STRING_TOO_LONG = "string_too_long"
    OUT_OF_WINDOW = "out_of_window"


class BusError(Exception):
    """Anything that the bus refuses or cannot do."""

    retryable = False


class FrameError(BusError):
    """Bytes that are no frame, or a frame that breaks its schema."""

    def __init__(self, reason: FrameFault, message: str) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason


class BusUnavailable(BusError):
    """The log cannot be reached or written just now; the same call may succeed later."""

    retryable = True

    def __init__(self, url: str, action: str, cause: object) -> None:
        super().__init__(f"the bus {url} could not {action}: {cause}. Nothing was acknowledged; try again.")
        self.url = url


class FrameRefused(FrameError):
    """What stands behind an outlet will never take this frame: sending it again changes nothing."""

    def __init__(self, url: str, reason: FrameFault, message: str) -> None:
        super().__init__(reason, message)
        self.args = (f"{url} refused a frame: {reason.value}: {message}",)
        self.url = url


class OutletFull(BusUnavailable):
    """A gateway has no room just now. Try again after ``retry_after_seconds``."""

    def __init__(self, url: str, message: str, retry_after_seconds: float) -> None:
        BusError.__init__(self, f"{url} is full: {message}. Try again in {retry_after_seconds:g} s.")
        self.url = url
        self.retry_after_seconds = retry_after_seconds


class GatewayRefused(BusUnavailable):
    """A gateway does not let this node in. Frames wait meanwhile, as for any far end that is away."""

    def __init__(self, url: str, reason: str, message: str, retry_after_seconds: float) -> None:
        BusError.__init__(self, f"the gateway {url} refused this node: {reason}: {message}")
        self.url, self.reason, self.retry_after_seconds = url, reason, retry_after_seconds


class UnusableCredentials(BusError):
    """A certificate, a key or an authority that TLS cannot use."""

    def __init__(self, what: str, found: object) -> None:
        super().__init__(f"{what} cannot be used: {found}. Expected files in PEM format that this user may read.")


class LogRemoved(BusUnavailable):
    """The embedded log's file is no longer the one that was opened: what is written would be in no folder."""

    def __init__(self, url: str) -> None:
        BusError.__init__(
            self,
            f"log.sqlite in the bus folder {url} was deleted or replaced while this process had it open. Nothing was "
            "acknowledged, and nothing will be: expected the log to stay in place. Restart every process that uses it.",
        )
        self.url = url


class TopicMissing(BusUnavailable):
    """The cluster has not got this topic. Whoever waits goes on as soon as somebody has made it."""

    def __init__(self, url: str, topic: str) -> None:
        BusError.__init__(
            self,
            f"the bus {url} has no topic {topic}, and makes none by itself. Run `nantucket bus init`, which makes all "
            "of them; nothing was acknowledged.",
        )
        self.url, self.topic = url, topic


class TopicMismatch(BusError):
    """Topics are there, but not as Nantucket needs them. Nothing was changed."""

    def __init__(self, url: str, faults: Sequence[str]) -> None:
        super().__init__(
            f"topics of the bus {url} are not as expected; none was changed, and none made: {'; '.join(faults)}. "
            "Alter them with the cluster's own tools, or choose another prefix in the URL (kafka://HOST:PORT/PREFIX)."
        )
        self.faults = tuple(faults)


class BusClosed(BusError):
    """The bus was used before it was opened or after it was closed."""

    def __init__(self, url: str, action: str) -> None:
        super().__init__(f"cannot {action}: the bus {url} is not open; use it inside 'async with'.")


class UnsuitableFolder(BusError):
    """The embedded log must not stand in this folder."""

    def __init__(self, folder: str, filesystem: str) -> None:
        super().__init__(
            f"the bus folder {folder} is on a network file system ({filesystem}), "
            "where SQLite's write-ahead log loses data: expected a local disk. "
            "Set the bus to file:///A/LOCAL/FOLDER."
        )


class InaccessibleFolder(BusError):
    """The embedded log's folder cannot be made or written."""

    def __init__(self, folder: str, cause: object) -> None:
        super().__init__(
            f"the bus folder {folder} cannot be used: {cause}. Expected a folder that this user may create files in: "
            "mend its owner or mode, or set the bus to another folder."
        )


class UnreadableLog(BusError):
    """The embedded log's file is damaged, or is no log that this version reads."""

    def __init__(self, url: str, found: object) -> None:
        super().__init__(
            f"log.sqlite in the bus folder {url} cannot be read as a log: {found}. Stop every process that uses it, "
            "move log.sqlite, log.sqlite-wal and log.sqlite-shm away together, and start again: a new log is made."
        )
        self.url = url


class InvalidPayload(BusError):
    """What was given to publish cannot be a payload. Nothing of the call was published."""

    def __init__(self, topic: str, position: int, found: str) -> None:
        super().__init__(
            f"payload {position} for {topic} cannot be published: {found}; nothing of the call was published"
        )


class UnknownBus(BusError):
    """A bus URL of no known kind."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the bus URL {url!r} is not understood: expected file:///FOLDER or kafka://HOST:PORT,..., or, for who "
            "only sends, gateway://HOST:PORT (gateways:// with TLS)."
        )


class RepeatedBus(BusError):
    """A bus that stands twice in one list of buses: its frames would be read twice."""

    def __init__(self, url: str) -> None:
        super().__init__(f"the bus {url!r} is listed twice: expected every region's bus once, home first.")
