"""What a request with rows or samples can be refused for.

::

    IngestRefused           ``status`` is the HTTP status; the message is what the client is told
    ├── NoToken             401: nobody said who they are
    ├── WrongToken          403: not the token of this job, or of this gateway
    ├── BodyLate            408
    ├── BodyTooLarge        413: bytes, rows or samples over a limit
    ├── UnknownBody         415: a content type or encoding that is not read here
    ├── UnreadableBody      400 or 422: as the protocol has it
    ├── BadRows             422: ``faults`` name row and field
    └── NoRoom              429: with Retry-After
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any


class IngestRefused(Exception):
    """A request that is refused as a whole: nothing of it was accepted."""

    status = HTTPStatus.BAD_REQUEST

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the answer."""
        return {}

    @property
    def members(self) -> Mapping[str, Any]:
        """What the problem document says besides its detail."""
        return {}


class NoToken(IngestRefused):
    """Nobody said who they are."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, expected: str) -> None:
        super().__init__(f"the header Authorization: expected 'Bearer TOKEN' with {expected}, found none")

    @property
    def headers(self) -> Mapping[str, str]:
        """As RFC 9110 asks of a 401."""
        return {"WWW-Authenticate": "Bearer"}


class WrongToken(IngestRefused):
    """A token that does not open this."""

    status = HTTPStatus.FORBIDDEN


class BodyLate(IngestRefused):
    """The body did not come in time."""

    status = HTTPStatus.REQUEST_TIMEOUT

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body: expected its last byte within {seconds:g} s, found the connection waiting")


class BodyTooLarge(IngestRefused):
    """More than one request may bring."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, found: str, most: int, hint: str = "Send it in several requests.") -> None:
        super().__init__(f"the body: expected at most {most}, found {found}. {hint}")


class UnknownBody(IngestRefused):
    """A content type or a content encoding that is not read here."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    def __init__(self, header: str, expected: str, found: str) -> None:
        super().__init__(f"the header {header}: expected {expected}, found {ascii(found[:80]) if found else 'none'}")


class UnreadableBody(IngestRefused):
    """A body that is not what its content type says."""


class BadRows(IngestRefused):
    """Rows that cannot be taken. ``faults`` has the first of them: row, field and message each."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, faults: Sequence[Mapping[str, Any]], more: bool = False) -> None:
        shown = "; ".join(f"row {fault['row']}, {fault['field']}: {fault['message']}" for fault in faults)
        super().__init__(f"{shown}{'; and more' if more else ''}. Nothing of the request was accepted.")
        self.faults = faults

    @property
    def members(self) -> Mapping[str, Any]:
        """The faults, for a program."""
        return {"errors": [dict(fault) for fault in self.faults]}


class NoRoom(IngestRefused):
    """As much as may be under way at once is under way."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"too many requests are under way; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> Mapping[str, str]:
        """When to come back."""
        return {"Retry-After": str(self.retry_after_seconds)}
