"""What can go wrong in a collector.

::

    CollectorError
    ├── SourceUnavailable       a source cannot be opened; the message says what to do
    │   ├── DriverNotFound      no NVML library on this machine
    │   └── DriverRefused       the library is there and does not start
    ├── SourceClosed            read before it was opened or after it was closed
    ├── CallFailed              a gRPC server of this node gave no answer that can be used
    ├── SpoolTaken              another collector has this spool
    ├── UnknownSource           a source name that is not in the registry
    └── InvalidSimulation       a simulated fleet that cannot be
        └── InvalidFault        a fault that means nothing

A field that could not be read is no exception but a null, counted with a :class:`FieldFailure`. This file imports
nothing of ours: the process that talks to the driver has it too.
"""

from enum import StrEnum


class FieldFailure(StrEnum):
    """Why a field could not be read. Every value is a metric label and starts at zero."""

    UNSUPPORTED = "unsupported"
    """This GPU or this driver does not have it."""
    NOT_PERMITTED = "not_permitted"
    """The driver has it and does not give it to this user."""
    GPU_LOST = "gpu_lost"
    """The GPU does not answer any more."""
    RESET_REQUIRED = "reset_required"
    """The GPU gives nothing until it is reset."""
    DRIVER_ERROR = "driver_error"
    """Any other code of the driver."""
    NO_ANSWER = "no_answer"
    """The driver did not answer within the deadline, or its reader died; the field is ``*``."""
    LOST = "lost"
    """It was there and went before it was read: records of the kernel's log that were overwritten."""


class CollectorError(Exception):
    """Anything that a collector refuses or cannot do."""

    retryable = False


class SourceUnavailable(CollectorError):
    """A source cannot be opened just now, or not on this machine."""


class DriverNotFound(SourceUnavailable):
    """There is no NVML library: this machine has no NVIDIA driver, or it is not visible here."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"no NVIDIA driver: expected libnvidia-ml.so.1 on the loader's path, found {found}. Install the driver, or "
            "in a container give it the driver's libraries (--gpus all with the NVIDIA container toolkit), or use "
            "--simulate N."
        )


class DriverRefused(SourceUnavailable):
    """The NVML library is there and cannot be used."""

    retryable = True

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the NVIDIA driver cannot be used: expected NVML to start, found {found}. See whether nvidia-smi works; "
            "after an update of the driver without a reboot, reboot or reload the kernel module."
        )


class SourceClosed(CollectorError):
    """A source was read before it was opened or after it was closed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cannot read the source {name}: it is not open; use it inside 'async with'.")


class UnknownSource(CollectorError):
    """A source name that is not in the registry."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"there is no source {name!r}: expected one of {', '.join(known)}.")


class InvalidSimulation(CollectorError, ValueError):
    """A simulated fleet that cannot be."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        super().__init__(f"a simulated fleet with {key} = {found!r} cannot be: expected {expected}.")


class InvalidFault(InvalidSimulation):
    """A fault that means nothing."""

    def __init__(self, fault: object, key: str, expected: str) -> None:
        super().__init__(f"{key} of the fault {fault!r}", getattr(fault, key), expected)


class Refused(StrEnum):
    """Why the listener for the SDK refused something. Every value is a metric label and starts at zero."""

    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    UPGRADE_REQUIRED = "upgrade_required"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_LATE = "head_late"
    TOKEN_MISSING = "token_missing"
    TOKEN_WRONG = "token_wrong"
    USER_NOT_ALLOWED = "user_not_allowed"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    HELLO_EXPECTED = "hello_expected"
    BAD_HELLO = "bad_hello"
    VERSION = "version"
    WRONG_JOB = "wrong_job"
    MESSAGE_TOO_LARGE = "message_too_large"
    MESSAGE_LATE = "message_late"
    NOT_JSON = "not_json"
    NOT_A_MESSAGE = "not_a_message"
    BAD_STREAM = "bad_stream"
    BAD_SEQ = "bad_seq"
    BAD_SENT = "bad_sent"
    BAD_ROWS = "bad_rows"
    BAD_ROW = "bad_row"
    BAD_CELL = "bad_cell"
    MISSING_CELL = "missing_cell"
    UNFRAMEABLE = "unframeable"
    """Every cell was checked and still they are no frame: a fault of this collector's limits, which ends nothing."""


class WireRefusal(CollectorError):
    """Something that came over the SDK's wire is refused; ``reason`` is also the metric label."""

    def __init__(self, reason: Refused, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SocketTaken(CollectorError):
    """The path for the listener's socket is in use."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(
            f"the SDK's socket cannot be at {path}: {found}. Expected a free path: stop the other collector, or set "
            "another path."
        )
        self.path = path


class UnsafeListener(CollectorError):
    """The listener was asked to stand where anybody could write a job's rows, or where it cannot stand."""


class CallFailed(CollectorError):
    """A gRPC server on a socket of this node gave no answer that can be used. Nothing has changed; it can be asked
    again."""

    retryable = True

    def __init__(self, path: str, method: str, found: str) -> None:
        super().__init__(f"asking {path} for {method}: expected an answer, found {found}")
        self.path = path


class SpoolTaken(CollectorError):
    """Another collector uses this spool: two would send the same frames, and bound each other's."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"the spool {folder} is in use by another collector: expected a folder for this one alone. Stop the other, "
            "or set spool.folder (or state) elsewhere."
        )
        self.folder = folder
