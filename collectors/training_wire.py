"""The collector's side of the SDK's wire (docs/wire.md): bytes and JSON in, checked values or a refusal out. No I/O.

Nothing is believed before it is checked. Each function raises :class:`~collectors.errors.WireRefusal` and nothing else,
with a message that names the field, what was expected and what was found.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from collectors.errors import Refused, WireRefusal
from telemetry_bus.cells import (
    IDENTITY_CELLS,
    INT32_MAX,
    INT64_MAX,
    METRIC_CELLS,
    NAME,
    TRAIN_CELLS,
    Check,
    count,
    detail,
    one_of,
    shown,
    step,
    text,
    utc_seconds,
)
from telemetry_bus.schemas import EventKind
from telemetry_bus.topics import Topic

PROTOCOL = "nantucket-sdk/1"
VERSION = 1
PATH = "/v1/sdk"
HEAD_BYTES_MAX = 8 * 1024
"""A handshake has 300 bytes; a proxy may add its own headers."""
HEADERS_MAX = 64
MESSAGE_BYTES_MAX = 256 * 1024
"""The SDK makes messages of up to 96 KiB and one row; a row at its longest has 32 KiB."""
HELLO_BYTES_MAX = 16 * 1024
"""Its longest names, all of them escaped, have 4 KiB; the rest is for fields that a later version may add."""
MESSAGE_ROWS_MAX = 1_024
"""The SDK sends 256; another client may send four times that."""


class Stream(StrEnum):
    """The numbered streams of one SDK process, one for each schema."""

    TRAIN = "train"
    METRIC = "metric"
    EVENT = "event"


STREAM_TOPICS = {Stream.TRAIN: Topic.TRAIN, Stream.METRIC: Topic.METRICS, Stream.EVENT: Topic.EVENTS}
STREAM_SCHEMAS = {Stream.TRAIN: "train/1", Stream.METRIC: "metric/1", Stream.EVENT: "event/1"}
SDK_EVENTS = frozenset(
    {
        EventKind.JOB_START,
        EventKind.JOB_END,
        EventKind.CHECKPOINT_BEGIN,
        EventKind.CHECKPOINT_END,
        EventKind.ANNOUNCED_CHANGE,
        EventKind.PHASE,
        EventKind.HEARTBEAT,
        EventKind.STACK,
        EventKind.VERDICT,
        EventKind.ROWS_DROPPED,
    }
)
"""What a job may tell about itself. What a node tells (an XID) comes from the node's own sources only."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the HTTP request asked for."""

    job: str
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who is at the other end. ``identity`` holds the columns that every row of this process shares."""

    sdk: str
    boot: uuid.UUID
    job: str
    attempt: str
    rank: int
    gpu: int | None
    identity: Mapping[str, Any]
    stack_fd: int | None = None
    """The descriptor of that process into which its stacks are written, if it offers one."""
    thread: str = ""
    """The thread that trains, as :mod:`faulthandler` writes it."""
    wants_welcome: bool = False
    """Whether it understands being told what is taken beyond the first version."""
    told_by: str = ""
    """Who tells of this process, where it is not itself: then the source has another name."""


@dataclass(frozen=True, slots=True)
class RowsMessage:
    """A numbered message: its rows as column name to checked value.

    ``unknown`` counts fields that were left out; ``dropped`` the rows that the SDK says no collector will ever see.
    """

    stream: Stream
    seq: int
    sent: float
    rows: list[dict[str, Any]]
    unknown: int
    dropped: int


def parse_handshake(head: bytes) -> Handshake:
    """The request in ``head`` (without its last empty line)."""
    try:
        first, *lines = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError as error:
        raise WireRefusal(Refused.BAD_REQUEST, "the request: expected ASCII, found other bytes") from error
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or len(lines) > HEADERS_MAX:
        raise WireRefusal(Refused.BAD_REQUEST, f"the request: expected 'GET {PATH} HTTP/1.1', found {first[:80]!r}")
    if words[:2] != ["GET", PATH]:
        raise WireRefusal(Refused.NOT_FOUND, f"here is only GET {PATH}, found {first[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or name in headers:
            raise WireRefusal(
                Refused.BAD_REQUEST, f"the headers: expected 'Name: value' once each, found {name[:40]!r}"
            )
        headers[name] = value.strip()
    if headers.get("upgrade", "").lower() != PROTOCOL:
        found = headers.get("upgrade", "none")[:40]
        raise WireRefusal(Refused.UPGRADE_REQUIRED, f"the header Upgrade: expected {PROTOCOL}, found {found!r}")
    return Handshake(
        _name(headers.get("nantucket-job"), "the header Nantucket-Job", Refused.BAD_REQUEST), _token(headers)
    )


def _token(headers: dict[str, str]) -> str | None:
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise WireRefusal(
            Refused.TOKEN_WRONG, "the header Authorization: expected 'Bearer TOKEN', found another scheme"
        )
    return token.strip()


def parse_object(message: bytes) -> dict[str, Any]:
    """A message's JSON object."""
    try:
        body = json.loads(message.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireRefusal(
            Refused.NOT_JSON, f"the message: expected a JSON object, found what is not JSON: {error}"
        ) from error
    if not isinstance(body, dict):
        raise WireRefusal(Refused.NOT_A_MESSAGE, f"the message: expected a JSON object, found {shown(body)}")
    return body


def _no_constant(word: str) -> float:
    raise ValueError(f'{word} is not JSON; expected the string "{word}"')


def parse_hello(body: Mapping[str, Any], job: str) -> Hello:
    """The ``hello`` of a connection whose handshake named ``job``."""
    if body.get("type") != "hello":
        raise WireRefusal(
            Refused.HELLO_EXPECTED, f"the first message: expected type 'hello', found {shown(body.get('type'))}"
        )
    if body.get("version") != VERSION or isinstance(body.get("version"), bool):
        raise WireRefusal(Refused.VERSION, f"version: expected {VERSION}, found {shown(body.get('version'))}")
    if body.get("job") != job:
        raise WireRefusal(
            Refused.WRONG_JOB, f"job: expected {job!r} as in the handshake, found {shown(body.get('job'))}"
        )
    try:
        boot = uuid.UUID(text(64)(body.get("boot")))
    except ValueError as error:
        raise WireRefusal(Refused.BAD_HELLO, f"boot: expected a UUID, found {shown(body.get('boot'))}") from error
    checked = {
        name: _checked(check, body[name], name) for name, check in HELLO_FIELDS.items() if body.get(name) is not None
    }
    rank = _checked(count(INT32_MAX), body.get("rank"), "rank")
    identity = {name: value for name, value in checked.items() if name not in OWN_FIELDS}
    attempt = _name(body.get("attempt"), "attempt", Refused.BAD_HELLO)
    own: dict[str, Any] = {name: checked[name] for name in ("stack_fd", "thread") if name in checked}
    own["wants_welcome"] = body.get("welcome") is True
    return Hello(checked.get("sdk", "unknown"), boot, job, attempt, rank, checked.get("gpu"), identity, **own)


def _checked(check: Check, value: object, name: str) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise WireRefusal(Refused.BAD_HELLO, f"{name}: {error}") from error


def _name(value: object, where: str, reason: Refused) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        expected = "expected 1 to 96 letters, digits or ._:@+- with a letter or digit first"
        raise WireRefusal(reason, f"{where}: {expected}, found {shown(value)}")
    return value


def parse_rows(body: Mapping[str, Any]) -> RowsMessage:
    """A ``rows`` message, every cell checked."""
    try:
        stream = Stream(body.get("stream", ""))
    except ValueError as error:
        expected = ", ".join(Stream)
        raise WireRefusal(
            Refused.BAD_STREAM, f"stream: expected one of {expected}, found {shown(body.get('stream'))}"
        ) from error
    seq = body.get("seq")
    if type(seq) is not int or not 0 <= seq < INT64_MAX:
        raise WireRefusal(Refused.BAD_SEQ, f"seq: expected a whole number from 0 on, found {shown(seq)}")
    try:
        sent = utc_seconds(body.get("sent"))
    except ValueError as error:
        raise WireRefusal(Refused.BAD_SENT, f"sent: {error}") from error
    rows = body.get("rows")
    if not isinstance(rows, list) or not 0 < len(rows) <= MESSAGE_ROWS_MAX:
        found = f"{len(rows)} rows" if isinstance(rows, list) else shown(rows)
        raise WireRefusal(Refused.BAD_ROWS, f"rows: expected a list of 1 to {MESSAGE_ROWS_MAX} rows, found {found}")
    fields = ROW_FIELDS[stream]
    unknown = 0
    checked = []
    for index, row in enumerate(rows):
        cells, left_out = _row(row, fields, REQUIRED[stream], index)
        checked.append(cells)
        unknown += left_out
    dropped = sum(_dropped(row) for row in checked) if stream is Stream.EVENT else 0
    return RowsMessage(stream, seq, sent, checked, unknown, dropped)


def _dropped(event: Mapping[str, Any]) -> int:
    """The rows that a ``rows_dropped`` event counts; 0 for any other event."""
    if event["kind"] != EventKind.ROWS_DROPPED:
        return 0
    rows = json.loads(event.get("detail", "{}")).get("rows")
    return rows if type(rows) is int and 0 <= rows <= INT64_MAX else 0


def _row(row: object, fields: Mapping[str, Check], required: tuple[str, ...], index: int) -> tuple[dict[str, Any], int]:
    if not isinstance(row, dict):
        raise WireRefusal(Refused.BAD_ROW, f"rows[{index}]: expected a JSON object, found {shown(row)}")
    cells = {}
    unknown = 0
    for name, value in row.items():
        if (check := fields.get(name)) is None:
            unknown += 1
            continue
        if value is None:
            continue
        try:
            cells[name] = check(value)
        except ValueError as error:
            raise WireRefusal(Refused.BAD_CELL, f"rows[{index}].{name}: {error}") from error
    for name in required:
        if name not in cells:
            raise WireRefusal(Refused.MISSING_CELL, f"rows[{index}].{name}: expected a value, found none")
    return cells, unknown


OWN_FIELDS: dict[str, Check] = {
    "sdk": text(64),
    "gpu": count(INT32_MAX),
    "stack_fd": count(INT32_MAX),
    "thread": text(32),
}
"""Fields of a ``hello`` that are no columns of its training rows."""
HELLO_FIELDS: dict[str, Check] = {**OWN_FIELDS, **IDENTITY_CELLS}
ROW_FIELDS: dict[Stream, Mapping[str, Check]] = {
    Stream.TRAIN: TRAIN_CELLS,
    Stream.METRIC: METRIC_CELLS,
    Stream.EVENT: {
        "time": utc_seconds,
        "kind": one_of(frozenset(SDK_EVENTS)),
        "step": step,
        "code": step,
        "message": text(4096),
        "detail": detail,
    },
}
REQUIRED: dict[Stream, tuple[str, ...]] = {
    Stream.TRAIN: ("time", "step"),
    Stream.METRIC: ("time", "step", "name"),
    Stream.EVENT: ("time", "kind"),
}
