"""One connection to a gateway, from the gateway's side: who is it, its frames, and their answers."""

import asyncio
import hmac
import math
from collections.abc import Sequence
from typing import Protocol, cast

from telemetry_bus.errors import BusUnavailable, FrameError, OutletFull
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.gateway import wire
from telemetry_bus.gateway.gateway import AWAY_SECONDS, FULL_SECONDS, Gateway
from telemetry_bus.gateway.room import Room
from telemetry_bus.gateway.splitter import Skipped, Splitter
from telemetry_bus.gateway.wire import Answered, Kind, LinkFault
from telemetry_bus.runtime.secret import Secret

LINK_BYTES_MAX = 32 * 1024 * 1024
"""Of one link under way: two of the largest frames, or minutes of a node's."""
LINK_FRAMES_MAX = 2_048
"""The same in frames: twice what a gateway below has under way. Each costs some 25 KB while it waits, however small it
is, so that 32 MiB of one-row frames of 700 bytes would be a gigabyte, and half a minute's work of the log."""
UNREAD_BYTES_MAX = 1024 * 1024
"""Answers that a sender does not read: 30,000 of them. Who is so far behind is hung up on."""
HELLO_SECONDS_MAX = 5.0
SILENT_SECONDS_MAX = 15.0
"""Ten of the other side's pings."""
MESSAGE_SECONDS_MAX = 30.0
"""The largest frame at half a megabyte a second; a message that has not ended by then holds room for nobody's good."""
CLOSING_SECONDS_MAX = 2.0
_BEFORE = frozenset({Kind.HELLO})
_AFTER = frozenset({Kind.PUT, Kind.REPORT, Kind.PING})


class Host(Protocol):
    """The server that a link belongs to."""

    gateway: Gateway
    token: Secret[str] | None
    all_links: Room
    """Bytes of frames that have begun to come in, of all links."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def joined(self, link: "ServerLink") -> bool:
        """Whether there is a place for one more; it is taken."""
        ...

    def left(self, link: "ServerLink") -> None:
        """Its place is free."""
        ...

    def report(self, link: "ServerLink", id_: int, payload: bytes) -> None:
        """Find out what becomes of a report, and tell the link."""
        ...

    def verdicts(self) -> Sequence[bytes]:
        """Those that a link which comes now should still hear."""
        ...


class ServerLink(asyncio.Protocol):
    """Speaks for one connection; the gateway's counters say why it ended, if the gateway ended it."""

    def __init__(self, host: Host) -> None:
        self.node = ""
        self.granted = 0.0
        self._host, self._counters = host, host.gateway.counters
        self._splitter = Splitter(_BEFORE, self._admit)
        self._room = Room(LINK_BYTES_MAX)
        self._sizes: dict[int, int] = {}
        self._acks: list[int] = []
        self._transport: asyncio.Transport | None = None
        self._is_welcome = False
        self._is_over = False
        self._began = self._heard = self._message_began = host.now()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for its HELLO, if there is a place for it."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._host.joined(self):
            self.end(LinkFault.FULL, "this gateway has no place for one more connection", FULL_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """What it sent is passed on; nobody is there for the answers."""
        self._is_over = True
        self._host.all_links.give_back(self._splitter.admitted)
        self._splitter.admitted = 0
        self._host.left(self)
        if self._is_welcome:
            self._host.gateway.gone(self)

    def data_received(self, data: bytes) -> None:
        """Take messages. What is none ends the connection."""
        if self._is_over:
            return
        self._heard = self._host.now()
        was_within = self._splitter.within_message
        try:
            for part in self._splitter.feed(data):
                was_within = False
                if isinstance(part, Skipped):
                    self._put_off(part.id, Answered.FULL, FULL_SECONDS, "too much is under way")
                    continue
                self._host.all_links.give_back(part.admitted)
                self._take(wire.decode_message(part.kind, part.body))
                if self._transport is None or self._transport.is_closing():
                    return
        except wire.WireFault as error:
            self.end(error.fault if self._is_welcome else _stranger(error.fault), error.message)
        if not was_within:
            self._message_began = self._heard

    def durable(self, id_: int) -> None:
        """Acknowledge; those of one turn of the loop go in one message."""
        self._answered(id_)
        if not self._acks:
            asyncio.get_running_loop().call_soon(self._send_acks)
        self._acks.append(id_)

    def not_taken(self, id_: int, error: Exception) -> None:
        """Say why, and whether to come again."""
        self._answered(id_)
        self.report_not_taken(id_, error)

    def report_not_taken(self, id_: int, error: Exception) -> None:
        """Say why."""
        if isinstance(error, FrameError):
            self._write(wire.Nack(id_, math.nan, error.reason.value, str(error)))
        elif isinstance(error, OutletFull):
            self._write(wire.Nack(id_, error.retry_after_seconds, Answered.FULL, str(error)))
        else:
            self._write(wire.Nack(id_, AWAY_SECONDS, Answered.UNAVAILABLE, str(error)))

    def reported(self, message: wire.Reported) -> None:
        """Say what became of a report."""
        self._write(message)

    def grant(self, bytes_per_second: float) -> None:
        """Say the pace of the backlog, where it has changed by more than a hundredth."""
        if self._is_welcome and abs(bytes_per_second - self.granted) > 0.01 * self.granted:
            self.granted = bytes_per_second
            self._write(wire.Grant(bytes_per_second))

    def tell(self, verdict: bytes) -> None:
        """Pass a verdict down."""
        if self._is_welcome:
            self._write(wire.VerdictDown(verdict))

    def look(self, now: float) -> None:
        """End the connection if its time is up."""
        if self._is_over:
            if now - self._heard > CLOSING_SECONDS_MAX and self._transport is not None:
                self._transport.abort()
        elif not self._is_welcome and now - self._began > HELLO_SECONDS_MAX:
            self.end(LinkFault.TIMEOUT, f"no HELLO within {HELLO_SECONDS_MAX:g} s")
        elif now - self._heard > SILENT_SECONDS_MAX:
            self.end(LinkFault.TIMEOUT, f"nothing was heard for {SILENT_SECONDS_MAX:g} s")
        elif self._splitter.within_message and now - self._message_began > MESSAGE_SECONDS_MAX:
            self.end(LinkFault.TIMEOUT, f"a message that does not end within {MESSAGE_SECONDS_MAX:g} s")

    def end(self, fault: LinkFault, message: str, retry_after: float = math.nan) -> None:
        """Refuse the connection, or end it, with a reason that is counted."""
        if self._is_over:
            return
        self._counters.links_ended[fault] += 1
        self._write(wire.Refused(fault, retry_after, message))
        self.close()

    def close(self) -> None:
        """Send what is answered, and hang up."""
        if not self._is_over and self._transport is not None:
            self._send_acks()
            self._is_over = True
            self._transport.close()

    def _take(self, message: wire.Message) -> None:
        match message:
            case wire.Hello():
                self._welcome(message)
            case wire.Put():
                self._put(message)
            case wire.ReportFinding():
                self._host.report(self, message.id, message.payload)
            case wire.Ping():
                self._write(wire.Pong())

    def _welcome(self, hello: wire.Hello) -> None:
        token = self._host.token
        if hello.version != wire.VERSION:
            message = f"the wire's version {hello.version}; expected {wire.VERSION}"
            return self.end(LinkFault.VERSION, message)
        if token is not None and not hmac.compare_digest(hello.token.encode(), token.reveal().encode()):
            found = "another one" if hello.token else "none"
            return self.end(LinkFault.UNAUTHENTICATED, f"expected this gateway's token, found {found}: set link.token")
        self.node, self._is_welcome, self._splitter.allowed = hello.node, True, _AFTER
        links = max(1, self._counters.links_now)
        self.granted = self._host.gateway.backlog_bytes_per_second / links
        self._write(wire.Welcome(wire.VERSION, self.granted, LINK_BYTES_MAX, FRAME_BYTES_MAX))
        for verdict in self._host.verdicts():
            self.tell(verdict)
        return None

    def _put(self, put: wire.Put) -> None:
        if put.id in self._sizes:
            self.end(LinkFault.UNEXPECTED, f"frame {put.id} is under way already: expected another id")
        elif len(self._sizes) >= LINK_FRAMES_MAX:
            self._put_off(put.id, Answered.FULL, FULL_SECONDS, f"{LINK_FRAMES_MAX} frames of this link are under way")
        elif not self._room.take(len(put.payload)):
            self._put_off(put.id, Answered.FULL, FULL_SECONDS, f"{self._room.used} bytes of this link are under way")
        else:
            self._sizes[put.id] = len(put.payload)
            self._host.gateway.accept(self, put.id, put.topic, put.key, put.payload)

    def _admit(self, size: int) -> bool:
        return self._host.all_links.take(size)

    def _answered(self, id_: int) -> None:
        self._room.give_back(self._sizes.pop(id_))

    def _put_off(self, id_: int, why: Answered, retry_after: float, message: str) -> None:
        self._counters.put_off[why] += 1
        self._write(wire.Nack(id_, retry_after, why, message))

    def _send_acks(self) -> None:
        acks, self._acks = self._acks, []
        for at in range(0, len(acks), wire.IDS_MAX):
            self._write(wire.Ack(acks[at : at + wire.IDS_MAX]))

    def _write(self, message: wire.Message) -> None:
        if self._is_over or self._transport is None:
            return
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._is_over = True
            self._counters.links_ended[LinkFault.SLOW] += 1
            self._transport.abort()
            return
        self._transport.write(wire.encode_message(message))


def _stranger(fault: LinkFault) -> LinkFault:
    """What does not even begin with a HELLO is another protocol at the wrong door."""
    return LinkFault.NOT_A_LINK if fault in (LinkFault.UNEXPECTED, LinkFault.OVERSIZED) else fault


async def answer_report(gateway: Gateway, link: ServerLink, id_: int, payload: bytes) -> None:
    """Find out what becomes of a report, and tell ``link``."""
    try:
        report = await gateway.report(payload)
    except (FrameError, BusUnavailable) as error:
        link.report_not_taken(id_, error)
    else:
        link.reported(wire.Reported(id_, report.published, report.receipts))
