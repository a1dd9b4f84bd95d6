"""The collector's side of the SDK's wire (docs/wire.md): bytes and JSON in, checked values or a refusal out. No I/O.

Nothing is believed before it is checked. Each function raises :class:`~collectors.errors.WireRefusal` and nothing else,
with a message that names the field, what was expected and what was found.
"""

import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from collectors.errors import Refused, WireRefusal
from telemetry_bus.json_text import NON_FINITE, dumps
from telemetry_bus.schemas import EventKind, Scope
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
TIME_MAX = 4_102_444_800.0
"""The year 2100, in UTC seconds; a clock that is wrong by less is the reader's to correct."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,95}")
"""A job or an attempt: ``job/attempt/rank/stream`` is a source of the bus, which has at most 256 bytes."""
METRIC_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
DETAIL_BYTES_MAX = 32 * 1024
"""Half of what a cell of a frame may hold: the stack of a hung rank."""
IDENTITY_BYTES_MAX = 253
"""UTF-8 bytes of a role, node, region or GPU UUID, as of a host's name: every row of the process repeats all four."""
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


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
        EventKind.STACK,
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


def parse_object(text: bytes) -> dict[str, Any]:
    """A message's JSON object."""
    try:
        body = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireRefusal(
            Refused.NOT_JSON, f"the message: expected a JSON object, found what is not JSON: {error}"
        ) from error
    if not isinstance(body, dict):
        raise WireRefusal(Refused.NOT_A_MESSAGE, f"the message: expected a JSON object, found {_shown(body)}")
    return body


def _no_constant(word: str) -> float:
    raise ValueError(f'{word} is not JSON; expected the string "{word}"')


def parse_hello(body: Mapping[str, Any], job: str) -> Hello:
    """The ``hello`` of a connection whose handshake named ``job``."""
    if body.get("type") != "hello":
        raise WireRefusal(
            Refused.HELLO_EXPECTED, f"the first message: expected type 'hello', found {_shown(body.get('type'))}"
        )
    if body.get("version") != VERSION or isinstance(body.get("version"), bool):
        raise WireRefusal(Refused.VERSION, f"version: expected {VERSION}, found {_shown(body.get('version'))}")
    if body.get("job") != job:
        raise WireRefusal(
            Refused.WRONG_JOB, f"job: expected {job!r} as in the handshake, found {_shown(body.get('job'))}"
        )
    try:
        boot = uuid.UUID(_text(64)(body.get("boot")))
    except ValueError as error:
        raise WireRefusal(Refused.BAD_HELLO, f"boot: expected a UUID, found {_shown(body.get('boot'))}") from error
    checked = {
        name: _checked(check, body[name], name) for name, check in HELLO_FIELDS.items() if body.get(name) is not None
    }
    rank = _checked(_count(INT32_MAX), body.get("rank"), "rank")
    identity = {name: value for name, value in checked.items() if name not in ("gpu", "sdk")}
    attempt = _name(body.get("attempt"), "attempt", Refused.BAD_HELLO)
    return Hello(checked.get("sdk", "unknown"), boot, job, attempt, rank, checked.get("gpu"), identity)


def _checked(check: "Check", value: object, name: str) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise WireRefusal(Refused.BAD_HELLO, f"{name}: {error}") from error


def _name(value: object, where: str, reason: Refused) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        expected = "expected 1 to 96 letters, digits or ._:@+- with a letter or digit first"
        raise WireRefusal(reason, f"{where}: {expected}, found {_shown(value)}")
    return value


def parse_rows(body: Mapping[str, Any]) -> RowsMessage:
    """A ``rows`` message, every cell checked."""
    try:
        stream = Stream(body.get("stream", ""))
    except ValueError as error:
        expected = ", ".join(Stream)
        raise WireRefusal(
            Refused.BAD_STREAM, f"stream: expected one of {expected}, found {_shown(body.get('stream'))}"
        ) from error
    seq = body.get("seq")
    if type(seq) is not int or not 0 <= seq < INT64_MAX:
        raise WireRefusal(Refused.BAD_SEQ, f"seq: expected a whole number from 0 on, found {_shown(seq)}")
    try:
        sent = _time(body.get("sent"))
    except ValueError as error:
        raise WireRefusal(Refused.BAD_SENT, f"sent: {error}") from error
    rows = body.get("rows")
    if not isinstance(rows, list) or not 0 < len(rows) <= MESSAGE_ROWS_MAX:
        found = f"{len(rows)} rows" if isinstance(rows, list) else _shown(rows)
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


def _row(
    row: object, fields: Mapping[str, "Check"], required: tuple[str, ...], index: int
) -> tuple[dict[str, Any], int]:
    if not isinstance(row, dict):
        raise WireRefusal(Refused.BAD_ROW, f"rows[{index}]: expected a JSON object, found {_shown(row)}")
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


Check = Callable[[object], Any]
"""Takes a JSON value and gives what stands in the column; raises ``ValueError`` with what was expected and found."""


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= TIME_MAX:
        raise ValueError(f"expected UTC seconds from 0 to {TIME_MAX:.0f}, found {_shown(value)}")
    return float(value)


def _number(value: object) -> float:
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError(f'expected a finite number, "NaN", "Infinity" or "-Infinity", found {_shown(value)}')


def _step(value: object) -> int:
    if type(value) is not int or not -INT64_MAX <= value <= INT64_MAX:
        raise ValueError(f"expected a whole number of 64 bits, found {_shown(value)}")
    return value


def _count(most: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"expected a whole number from 0 to {most}, found {_shown(value)}")
        return value

    return check


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {_shown(value)}")
    return value


def _identity_text(longest: int) -> Callable[[object], str]:
    """A text that every row of a process repeats: bounded in the bytes that it takes in each."""
    characters = _text(longest)

    def check(value: object) -> str:
        text = characters(value)
        if (size := len(text.encode())) > longest:
            raise ValueError(f"expected a text of at most {longest} bytes in UTF-8, found {size}")
        return text

    return check


def _text(longest: int) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            raise ValueError(f"expected a text of 1 to {longest} characters, found {_shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("expected Unicode text, found half of a surrogate pair") from error
        return value

    return check


def _one_of(allowed: frozenset[str]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"expected one of {', '.join(sorted(allowed))}, found {_shown(value)}")
        return value

    return check


def _metric_name(value: object) -> str:
    name = _text(128)(value)
    if METRIC_NAME.fullmatch(name) is None:
        raise ValueError(f"expected 1 to 128 characters without control characters, found {_shown(value)}")
    return name


def _detail(value: object) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {_shown(value)}")
    try:
        text = dumps(value)
        size = len(text.encode())
    except (UnicodeEncodeError, RecursionError) as error:
        raise ValueError("expected a JSON object of Unicode text, found one that cannot be written") from error
    if size > DETAIL_BYTES_MAX:
        raise ValueError(f"expected a JSON object of at most {DETAIL_BYTES_MAX} bytes, found {size}")
    return text


def _shown(value: object) -> str:
    """What was found, short enough for a message."""
    if isinstance(value, str):
        return ascii(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return repr(value)
    names: dict[type, str] = {type(None): "nothing", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


HELLO_FIELDS: dict[str, Check] = {
    "sdk": _text(64),
    "world_size": _count(INT32_MAX),
    "role": _identity_text(IDENTITY_BYTES_MAX),
    "node": _identity_text(IDENTITY_BYTES_MAX),
    "region": _identity_text(IDENTITY_BYTES_MAX),
    "uuid": _identity_text(IDENTITY_BYTES_MAX),
    "gpu": _count(INT32_MAX),
    "dp": _count(INT32_MAX),
    "tp": _count(INT32_MAX),
    "pp": _count(INT32_MAX),
    "ep": _count(INT32_MAX),
}
ROW_FIELDS: dict[Stream, dict[str, Check]] = {
    Stream.TRAIN: {
        "time": _time,
        "step": _step,
        "microbatch": _count(INT32_MAX),
        "phase": _text(64),
        "scope": _one_of(frozenset(Scope)),
        "loss": _number,
        "grad_norm": _number,
        "update_norm": _number,
        "nonfinite": _count(INT64_MAX),
        "watched_elements": _count(INT64_MAX),
        "total_elements": _count(INT64_MAX),
        "first_nonfinite": _text(512),
        "loss_scale": _number,
        "skipped": _bool,
        "lr": _number,
        "tokens": _count(INT64_MAX),
        "step_seconds": _number,
        "data_seconds": _number,
        "wait_seconds": _number,
    },
    Stream.METRIC: {"time": _time, "step": _step, "name": _metric_name, "layer": _text(512), "value": _number},
    Stream.EVENT: {
        "time": _time,
        "kind": _one_of(frozenset(SDK_EVENTS)),
        "step": _step,
        "code": _step,
        "message": _text(4096),
        "detail": _detail,
    },
}
REQUIRED: dict[Stream, tuple[str, ...]] = {
    Stream.TRAIN: ("time", "step"),
    Stream.METRIC: ("time", "step", "name"),
    Stream.EVENT: ("time", "kind"),
}
