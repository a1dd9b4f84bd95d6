"""One connection to a gateway, from the side that sends: HELLO, many frames under way, and an answer for each."""

import asyncio
import math
from collections.abc import Callable
from typing import cast

from telemetry_bus.errors import BusUnavailable, FrameFault, FrameRefused, GatewayRefused, OutletFull
from telemetry_bus.gateway import wire
from telemetry_bus.gateway.room import Room
from telemetry_bus.gateway.splitter import Splitter, Whole
from telemetry_bus.outlet import Report

JOINED_BYTES_MAX = 64 * 1024
"""Up to here one write of a copy is cheaper than two writes."""
_ANSWERS = frozenset(
    {wire.Kind.WELCOME, wire.Kind.REFUSED, wire.Kind.ACK, wire.Kind.NACK, wire.Kind.REPORTED, wire.Kind.GRANT}
    | {wire.Kind.PONG, wire.Kind.VERDICT}
)

Answer = asyncio.Future[Report | None]


class Connection(asyncio.Protocol):
    """Speaks for one connection. Once ``lost`` is done nothing more can be sent."""

    def __init__(
        self, url: str, hello: wire.Hello, monotonic: Callable[[], float], hear: Callable[[bytes], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.welcome: asyncio.Future[wire.Welcome] = loop.create_future()
        self.lost: asyncio.Future[BusUnavailable] = loop.create_future()
        self.granted = 0.0
        self.heard_at = monotonic()
        self._url, self._hello, self._monotonic, self._hear = url, hello, monotonic, hear
        self._splitter = Splitter(_ANSWERS, lambda _: False)
        self._room = Room(0)
        self._waiting: dict[int, tuple[Answer, int]] = {}
        self._next_id = 0
        self._writable = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who connects."""
        self._transport = cast("asyncio.Transport", transport)
        self._writable.set()
        self._transport.write(wire.encode_message(self._hello))

    def data_received(self, data: bytes) -> None:
        """Take the answers."""
        self.heard_at = self._monotonic()
        try:
            for part in self._splitter.feed(data):
                assert isinstance(part, Whole), "no answer is so large that it is skipped"
                self._answered(wire.decode_message(part.kind, part.body))
        except wire.WireFault as error:
            self.end(BusUnavailable(self._url, "be understood", error))

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever is under way was not acknowledged."""
        self.end(BusUnavailable(self._url, "answer", exc or "the connection was closed"))

    def pause_writing(self) -> None:
        """The far end does not keep up."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    def end(self, why: BusUnavailable) -> None:
        """Give the connection up: everything under way fails with ``why``."""
        if self.lost.done():
            return
        self.lost.set_result(why)
        if not self.welcome.done():
            self.welcome.set_exception(why)
        for answer, _ in list(self._waiting.values()):
            _settle(answer, why)
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._write(wire.encode_message(wire.Ping()))

    async def put(self, topic: str, key: str, payload: bytes) -> Answer:
        """Send a frame, as soon as there is room for it under way; gives what will be its answer."""
        frame_bytes_max = (await asyncio.shield(self.welcome)).frame_bytes_max
        if len(payload) > frame_bytes_max:
            message = f"{len(payload)} bytes; the gateway takes at most {frame_bytes_max}"
            raise FrameRefused(self._url, FrameFault.TOO_LARGE, message)
        await self._room.wait_for(len(payload))
        answer = self._expect(len(payload))
        head = wire.put_head(self._next_id, topic, key, len(payload))
        await self._send(answer, head, payload)
        return answer

    async def report(self, payload: bytes) -> Answer:
        """Send a report; it waits for no room."""
        answer = self._expect(0)
        await self._send(answer, wire.encode_message(wire.ReportFinding(self._next_id, payload)), b"")
        return answer

    def _expect(self, size: int) -> Answer:
        self._next_id += 1
        id_, answer = self._next_id, asyncio.get_running_loop().create_future()
        self._waiting[id_] = (answer, size)
        answer.add_done_callback(lambda _: self._forget(id_))
        return answer

    def _forget(self, id_: int) -> None:
        _, size = self._waiting.pop(id_)
        if size:
            self._room.give_back(size)

    async def _send(self, answer: Answer, head: bytes, payload: bytes) -> None:
        try:
            await self._writable.wait()
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if self.lost.done():
            _settle(answer, self.lost.result())
        elif len(payload) <= JOINED_BYTES_MAX:
            self._write(head + payload)
        else:
            self._write(head)
            self._write(payload)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _answered(self, message: wire.Message) -> None:
        match message:
            case wire.Ack():
                for id_ in message.ids:
                    self._settle_id(id_, None)
            case wire.Nack():
                self._settle_id(message.id, self._refusal(message))
            case wire.Reported():
                self._settle_id(message.id, Report(message.published, message.receipts))
            case wire.Grant():
                self.granted = message.bytes_per_second
            case wire.VerdictDown():
                self._hear(message.payload)
            case wire.Welcome() if not self.welcome.done():
                self.granted = message.bytes_per_second
                self._room.bytes_max = message.in_flight_bytes_max
                self.welcome.set_result(message)
            case wire.Refused():
                self.end(GatewayRefused(self._url, message.fault, message.message, message.retry_after))
            case _:
                pass

    def _settle_id(self, id_: int, result: Report | Exception | None) -> None:
        if (waiting := self._waiting.get(id_)) is not None:  # else nobody waits for it any more
            _settle(waiting[0], result)

    def _refusal(self, nack: wire.Nack) -> Exception:
        if nack.reason == wire.Answered.FULL:
            return OutletFull(self._url, nack.message, nack.retry_after)
        if not math.isnan(nack.retry_after):
            return BusUnavailable(self._url, "take it", nack.message)
        try:
            return FrameRefused(self._url, FrameFault(nack.reason), nack.message)
        except ValueError:  # a newer gateway's reason
            return FrameRefused(self._url, FrameFault.FOREIGN, f"{nack.reason}: {nack.message}")


def _settle(answer: Answer, result: Report | Exception | None) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
        answer.exception()  # seen: whoever waited may have gone
    else:
        answer.set_result(result)
