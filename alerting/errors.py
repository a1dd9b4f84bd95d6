"""What can go wrong between a finding and a page.

::

    AlertingError
    ├── BadSetting            a receiver or route that cannot be used as it is configured
    ├── UnknownReceiver       a receiver of that name is not configured
    ├── StoreUnavailable      the store cannot be read or written just now: try again (``retryable``)
    ├── StoreInUse            another process writes this store already
    ├── StoreMismatch         the file is no store of this version
    ├── DeliveryFailed        a receiver has not taken a delivery; ``reason`` is also the metric label
    └── PageNotTaken          no receiver has taken a page of a gateway yet: report it again (``retryable``)
"""

from collections.abc import Sequence
from enum import StrEnum

from telemetry_bus.errors import BusError, BusUnavailable


class Outcome(StrEnum):
    """What came of one try to deliver. Every value is a metric label and starts at zero."""

    TAKEN = "taken"
    """Any 2xx."""
    TIMEOUT = "timeout"
    """No answer within the time for one try."""
    UNREACHABLE = "unreachable"
    """No connection, or one that broke."""
    NOT_NOW = "not_now"
    """408, 425 or 429."""
    SERVER_ERROR = "server_error"
    """5xx."""
    REFUSED = "refused"
    """Any other 4xx (or an answer that HTTP does not know): trying again would be refused again."""
    REDIRECTED = "redirected"
    """3xx. Not followed: the signed page would go to somebody whom nobody configured."""
    OUR_FAULT = "our_fault"
    """A fault of Nantucket's own, which the log tells; it is tried again."""
    TOO_OLD = "too_old"
    """Tried until the retry horizon."""
    UNKNOWN_RECEIVER = "unknown_receiver"
    """The receiver is no longer configured."""


class AlertingError(Exception):
    """Anything that alerting refuses or cannot do."""

    retryable = False


class BadSetting(AlertingError, ValueError):
    """A setting that cannot be used. The value of a secret is never given."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}, found {found}.")
        self.key = key


class UnknownReceiver(AlertingError):
    """There is no receiver of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"there is no receiver {name!r}: configured are {listed}. Add it under [receivers] in the configuration."
        )


class StoreUnavailable(AlertingError):
    """The store cannot be read or written just now; the same call may succeed later."""

    retryable = True

    def __init__(self, store: str, action: str, cause: BaseException | str) -> None:
        super().__init__(
            f"the alert store {store} could not {action}: {cause}. Nothing was changed; it is tried again."
        )


class StoreInUse(AlertingError):
    """Another process is the writer of this store."""

    def __init__(self, store: str) -> None:
        super().__init__(
            f"the alert store {store} is written by another process: expected one writer for an SQLite store. "
            "Stop the other 'nantucket alert' (or 'up'), or give this one a store of its own."
        )


class StoreMismatch(AlertingError):
    """The file is no store of this version."""

    def __init__(self, store: str, found: object, expected: int) -> None:
        super().__init__(
            f"the alert store {store} has schema version {found}, expected {expected}. "
            "Run the version of Nantucket that wrote it, or move the file away to begin a new store."
        )


class DeliveryFailed(AlertingError):
    """A receiver has not taken a delivery.

    ``retry_after_seconds`` is what the receiver asked for, ``None`` where it asked for nothing. ``status`` is the HTTP
    status, ``None`` where there was no answer.
    """

    def __init__(
        self,
        receiver: str,
        reason: Outcome,
        detail: str,
        *,
        retryable: bool,
        status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        after = "it is tried again" if retryable else "it is not tried again"
        super().__init__(f"receiver {receiver}: {reason.value}: {detail}; {after}")
        self.receiver = receiver
        self.reason = reason
        self.retryable = retryable
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class PageNotTaken(AlertingError, BusUnavailable):
    """No receiver has taken a page that a gateway owes to a finding.

    To whoever has reported the finding it is what a bus that is away is: nothing was acknowledged, and the same report
    may succeed later. (A gateway knows the errors of the bus, and nothing of alerting.)
    """

    retryable = True

    def __init__(self, pages: Sequence[str], why: Sequence[str]) -> None:
        named, more = "; ".join(dict.fromkeys(why)), len(pages) - 1
        BusError.__init__(
            self,
            f"no receiver has taken the page {pages[0]!r}{f' and {more} more' if more else ''} yet: {named}. "
            "Report it again; it is tried on meanwhile.",
        )
        self.url = "receivers"
