"""The wire of a link between a collector (or a child gateway) and a gateway: ``docs/gateway.md`` has the table.

Every message is ``uint32 length`` of what follows, ``uint8 kind``, and the kind's fields; integers and floats are
little endian, texts are UTF-8 behind a ``uint16`` length. Nothing is believed before it is checked: a message that is
longer than its kind may be, or whose fields do not fill it exactly, ends the connection with a reason.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

from telemetry_bus.frames import FRAME_BYTES_MAX

VERSION = 1
"""Of the wire. A gateway refuses a version that it does not know, and says which one it speaks."""
MAGIC = b"NTGL"
"""A gateway's link: what does not begin with it is another protocol at the wrong door."""
TEXT_BYTES_MAX = 512
"""A source name has 256 bytes, a receipt some 200."""
TOKEN_BYTES_MAX = 1_024
MESSAGE_TEXT_BYTES_MAX = 2_048
"""What a refusal says in words; longer ones are cut."""
RECEIPTS_MAX = 64
"""One for each receiver and finding; a gateway has a handful of receivers."""
IDS_MAX = 4_096
"""Acknowledgements in one message: 32 KiB."""
SMALL_BYTES_MAX = 64 * 1024
"""Everything but a frame: the largest is a full list of acknowledgements."""
HEAD = struct.Struct("<IB")
PUT_HEAD_BYTES = HEAD.size + 8
"""So many bytes tell what a PUT or REPORT is called, before its body has come."""

_U8, _U16, _U64, _F64 = (struct.Struct(form) for form in ("<B", "<H", "<Q", "<d"))
_NACK = struct.Struct("<Qd")
_WELCOME = struct.Struct("<HdII")
_MAGIC = struct.Struct("<4s")


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    PUT = 4
    ACK = 5
    NACK = 6
    REPORT = 7
    REPORTED = 8
    GRANT = 9
    PING = 10
    PONG = 11
    VERDICT = 12


class LinkFault(StrEnum):
    """Why a gateway ends or refuses a connection. Every value is a metric label and starts at zero."""

    NOT_A_LINK = "not_a_link"
    """Its first bytes are another protocol's."""
    VERSION = "version"
    UNAUTHENTICATED = "unauthenticated"
    FULL = "full"
    """No room for one more connection."""
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    UNEXPECTED = "unexpected"
    """A message that this side does not take, or not now."""
    TIMEOUT = "timeout"
    """No HELLO, no sign of life, or a message that does not end."""
    SLOW = "slow"
    """It does not read its answers."""


class Answered(StrEnum):
    """Why a frame was not taken, where the frame itself is not at fault (those reasons are ``FrameFault``)."""

    FULL = "full"
    UNAVAILABLE = "unavailable"
    """What stands behind the gateway is away."""


class WireFault(Exception):
    """Bytes that are no message of this wire."""

    def __init__(self, fault: LinkFault, message: str) -> None:
        super().__init__(f"{fault.value}: {message}")
        self.fault, self.message = fault, message


@dataclass(frozen=True, slots=True)
class Hello:
    """Who connects. The token never shows in a repr."""

    version: int
    token: str
    node: str
    region: str

    def __repr__(self) -> str:
        return f"Hello(version={self.version}, node={self.node!r}, region={self.region!r})"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The connection is taken: the pace of the backlog, and what may be under way at once."""

    version: int
    bytes_per_second: float
    in_flight_bytes_max: int
    frame_bytes_max: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection is not taken, or ends here. ``retry_after`` (seconds) is NaN where a retry changes nothing."""

    fault: str
    retry_after: float
    message: str


@dataclass(frozen=True, slots=True)
class Put:
    """One frame. ``id`` is the sender's, and comes back with the answer."""

    id: int
    topic: str
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """These frames are durable."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Nack:
    """This frame or report was not taken; ``retry_after`` is NaN where it never will be."""

    id: int
    retry_after: float
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ReportFinding:
    """One encoded ``finding/1`` frame that is to be published or paged."""

    id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of a report."""

    id: int
    published: bool
    receipts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """The pace of the backlog from now on."""

    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""


@dataclass(frozen=True, slots=True)
class VerdictDown:
    """One encoded ``verdict/1`` frame for the jobs below, which alone believe or disbelieve it."""

    payload: bytes


Message = Hello | Welcome | Refused | Put | Ack | Nack | ReportFinding | Reported | Grant | Ping | Pong | VerdictDown

BYTES_MAX: dict[Kind, int] = {
    Kind.HELLO: 4_096,
    Kind.PUT: FRAME_BYTES_MAX + 2 * TEXT_BYTES_MAX + 64,
    Kind.REPORT: 1024 * 1024,
}
"""Of a message behind its length, by kind; :data:`SMALL_BYTES_MAX` for the others. A report is a few findings."""


def bytes_max(kind: int) -> int:
    """How long a message of ``kind`` may be; raises :class:`WireFault` for a kind that is none."""
    try:
        return BYTES_MAX.get(Kind(kind), SMALL_BYTES_MAX)
    except ValueError:
        raise WireFault(LinkFault.MALFORMED, f"expected a message of kind 1 to {max(Kind)}, found {kind}") from None


def encode_message(message: Message) -> bytes:
    """``message`` as bytes of the wire, but for :class:`Put`, whose frame goes behind (see :func:`put_head`)."""
    kind, body = _ENCODERS[type(message)](message)
    return HEAD.pack(1 + len(body), kind) + body


def put_head(id_: int, topic: str, key: str, payload_bytes: int) -> bytes:
    """What stands before the frame's own bytes in a PUT: so that a frame of megabytes is not copied once more."""
    body = _U64.pack(id_) + _text(topic) + _text(key)
    return HEAD.pack(1 + len(body) + payload_bytes, Kind.PUT) + body


def decode_message(kind: int, body: memoryview) -> Message:
    """The message in ``body``. Raises :class:`WireFault` for whatever it is not."""
    fields = _Fields(body)
    try:
        message = _DECODERS[Kind(kind)](fields)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise WireFault(LinkFault.MALFORMED, f"a message of kind {kind} cannot be read: {error}") from error
    if fields.left:
        raise WireFault(LinkFault.MALFORMED, f"{fields.left} bytes too many in a message of kind {kind}")
    return message


def _text(value: str, bytes_max_: int = TEXT_BYTES_MAX) -> bytes:
    raw = value.encode()
    if len(raw) > bytes_max_:
        raw = raw[:bytes_max_].decode("utf-8", "ignore").encode()  # no half of a character
    return _U16.pack(len(raw)) + raw


class _Fields:
    """Takes fields off the front of a message."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: memoryview) -> None:
        self._body, self._at = body, 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self._body, self._at)
        self._at += form.size
        return values

    def whole(self, form: struct.Struct) -> int:
        return int(self.take(form)[0])

    def number(self) -> float:
        return float(self.take(_F64)[0])

    def text(self, bytes_max_: int = TEXT_BYTES_MAX) -> str:
        length = self.whole(_U16)
        if length > bytes_max_ or length > self.left:
            raise ValueError(f"a text of {length} bytes; at most {min(bytes_max_, self.left)} here")
        raw = self._body[self._at : self._at + length]
        self._at += length
        return str(raw, "utf-8")

    def rest(self) -> bytes:
        raw = bytes(self._body[self._at :])
        self._at = len(self._body)
        return raw


def _encode_hello(m: Hello) -> tuple[Kind, bytes]:
    body = MAGIC + _U16.pack(m.version) + _text(m.token, TOKEN_BYTES_MAX) + _text(m.node) + _text(m.region)
    return Kind.HELLO, body


def _decode_hello(fields: _Fields) -> Hello:
    (magic,) = fields.take(_MAGIC)
    if magic != MAGIC:
        raise WireFault(LinkFault.NOT_A_LINK, f"expected a HELLO that begins with {MAGIC!r}, found {magic!r}")
    version = fields.whole(_U16)
    return Hello(version, fields.text(TOKEN_BYTES_MAX), fields.text(), fields.text())


def _encode_reported(m: Reported) -> tuple[Kind, bytes]:
    receipts = m.receipts[:RECEIPTS_MAX]
    head = _U64.pack(m.id) + _U8.pack(m.published) + _U16.pack(len(receipts))
    return Kind.REPORTED, head + b"".join(_text(receipt) for receipt in receipts)


def _decode_reported(fields: _Fields) -> Reported:
    id_, published, count = fields.whole(_U64), fields.whole(_U8), fields.whole(_U16)
    if published > 1 or count > RECEIPTS_MAX:
        raise ValueError(f"published {published}, {count} receipts; expected 0 or 1, and at most {RECEIPTS_MAX}")
    return Reported(id_, bool(published), tuple(fields.text() for _ in range(count)))


def _decode_ack(fields: _Fields) -> Ack:
    count, odd = divmod(fields.left, 8)
    if odd or not 0 < count <= IDS_MAX:
        raise ValueError(f"{fields.left} bytes are not 1 to {IDS_MAX} ids")
    return Ack(fields.take(struct.Struct(f"<{count}Q")))


def _decode_welcome(fields: _Fields) -> Welcome:
    version, pace, in_flight, frame = fields.take(_WELCOME)
    return Welcome(int(version), float(pace), int(in_flight), int(frame))


def _decode_nack(fields: _Fields) -> Nack:
    id_, retry_after = fields.take(_NACK)
    return Nack(int(id_), float(retry_after), fields.text(), fields.text(MESSAGE_TEXT_BYTES_MAX))


def _body_of_refused(m: Refused) -> bytes:
    return _text(m.fault) + _F64.pack(m.retry_after) + _text(m.message, MESSAGE_TEXT_BYTES_MAX)


def _body_of_nack(m: Nack) -> bytes:
    return _NACK.pack(m.id, m.retry_after) + _text(m.reason) + _text(m.message, MESSAGE_TEXT_BYTES_MAX)


_ENCODERS: dict[type, Callable[[Any], tuple[Kind, bytes]]] = {
    Hello: _encode_hello,
    Welcome: lambda m: (
        Kind.WELCOME,
        _WELCOME.pack(m.version, m.bytes_per_second, m.in_flight_bytes_max, m.frame_bytes_max),
    ),
    Refused: lambda m: (Kind.REFUSED, _body_of_refused(m)),
    Put: lambda m: (Kind.PUT, _U64.pack(m.id) + _text(m.topic) + _text(m.key) + m.payload),
    Ack: lambda m: (Kind.ACK, struct.pack(f"<{len(m.ids)}Q", *m.ids)),
    Nack: lambda m: (Kind.NACK, _body_of_nack(m)),
    ReportFinding: lambda m: (Kind.REPORT, _U64.pack(m.id) + m.payload),
    Reported: _encode_reported,
    Grant: lambda m: (Kind.GRANT, _F64.pack(m.bytes_per_second)),
    Ping: lambda _: (Kind.PING, b""),
    Pong: lambda _: (Kind.PONG, b""),
    VerdictDown: lambda m: (Kind.VERDICT, m.payload),
}
_DECODERS: dict[Kind, Callable[[_Fields], Message]] = {
    Kind.HELLO: _decode_hello,
    Kind.WELCOME: _decode_welcome,
    Kind.REFUSED: lambda f: Refused(f.text(), f.number(), f.text(MESSAGE_TEXT_BYTES_MAX)),
    Kind.PUT: lambda f: Put(f.whole(_U64), f.text(), f.text(), f.rest()),
    Kind.ACK: _decode_ack,
    Kind.NACK: _decode_nack,
    Kind.REPORT: lambda f: ReportFinding(f.whole(_U64), f.rest()),
    Kind.REPORTED: _decode_reported,
    Kind.GRANT: lambda f: Grant(f.number()),
    Kind.PING: lambda _: Ping(),
    Kind.PONG: lambda _: Pong(),
    Kind.VERDICT: lambda f: VerdictDown(f.rest()),
}
