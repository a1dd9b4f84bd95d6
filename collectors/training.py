"""The listener for the SDK: a Unix socket, a port of this machine, or both, and from there to the bus.

A message is acknowledged only after ``publish`` has returned, so that an SDK keeps what is not durable. What is
refused is answered with its reason and counted, and stops nothing else. docs/wire.md describes the protocol.
"""

import asyncio
import json
import logging
import os
import struct
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from collectors.credentials import JobCredentials
from collectors.errors import Refused, WireRefusal
from collectors.gpu_users import GpuUsers, TrainingPeer
from collectors.gpu_users.processes import PROC, shows_host
from collectors.profiling import ProfilingSwitch
from collectors.training_clock import SenderClock
from collectors.training_lanes import Counters, Lane, Message, Publish, warm_up
from collectors.training_memory import (
    CONNECTION_BYTES_MAX,
    HELD_BYTES_MAX,
    UNFINISHED_BYTES_MAX,
    Arrivals,
    ByteBudget,
)
from collectors.training_process import process_of
from collectors.training_sockets import UNIX_MODE, bind_tcp, bind_unix_owned, check_place, peer_of
from collectors.training_stacks import read_stack
from collectors.training_teller import Teller
from collectors.training_wire import (
    HEAD_BYTES_MAX,
    HELLO_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    SDK_EVENTS,
    Handshake,
    Hello,
    RowsMessage,
    Stream,
    parse_handshake,
    parse_hello,
    parse_object,
    parse_rows,
)
from collectors.verdict_desk import VerdictDesk
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind

LOGGER = logging.getLogger(__name__)
READ_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0
"""How long closing waits for what is on its way to the bus. What is not acknowledged by then is sent to the next
collector."""
_LENGTH = struct.Struct("<I")
_STATUS = {
    Refused.BAD_REQUEST: "400 Bad Request",
    Refused.TOKEN_MISSING: "401 Unauthorized",
    Refused.TOKEN_WRONG: "403 Forbidden",
    Refused.USER_NOT_ALLOWED: "403 Forbidden",
    Refused.NOT_FOUND: "404 Not Found",
    Refused.HEAD_LATE: "408 Request Timeout",
    Refused.UPGRADE_REQUIRED: "426 Upgrade Required",
    Refused.HEAD_TOO_LARGE: "431 Request Header Fields Too Large",
    Refused.TOO_MANY_CONNECTIONS: "503 Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one listener takes. At each of them the answer says so, and it is counted."""

    connections: int = 512
    """A node has 16 ranks; a workstation's demo and its benchmark open 200. Each may buffer up to 128 KiB unread, and
    have one whole message that waits for room: at the very worst 192 MiB together, beside what the others bound."""
    held_bytes: int = HELD_BYTES_MAX
    connection_bytes: int = CONNECTION_BYTES_MAX
    unfinished_bytes: int = UNFINISHED_BYTES_MAX
    hello_seconds: float = 5.0
    """From connecting to the handshake, and from there to hello: both follow within a millisecond."""
    body_seconds: float = 10.0
    """From a message's length to its last byte: 256 KiB on one machine take a millisecond."""


DEFAULT_LIMITS = Limits()


class TrainingListener:
    """Takes training rows from SDKs and publishes them. Use it in ``async with``; it can be opened once.

    ``unix_path``: a socket for this node's jobs (a token is optional there, and must be right if it is sent and there
    are ``credentials``). ``tcp``: (address, port) of a loopback interface, port 0 for any; it takes only jobs with
    their token. ``require_token`` asks for one on the Unix socket too. ``profiling`` is the switch that can be asked on
    the socket. ``users`` is told which job's process speaks from where, and when it has hung up.
    ``verdicts`` are said to the processes that they are about.
    """

    def __init__(
        self,
        publish: Publish,
        clock: Clock,
        *,
        node: str,
        region: str | None = None,
        unix_path: str | os.PathLike[str] | None = None,
        unix_mode: int = UNIX_MODE,
        tcp: tuple[str, int] | None = None,
        credentials: JobCredentials | None = None,
        require_token: bool = False,
        unix_users: frozenset[int] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        profiling: ProfilingSwitch | None = None,
        users: GpuUsers | None = None,
        verdicts: VerdictDesk | None = None,
    ) -> None:
        check_place(unix_path, tcp, credentials, require_token)
        self.node = node
        self.region = region
        self.unix_path = None if unix_path is None else Path(unix_path)
        self.tcp_address: tuple[str, int] | None = None
        """Where the port is, once open."""
        self.counters = Counters()
        self.clock = clock
        self.limits = limits
        self.profiling = profiling
        self.users = users
        self.verdicts = verdicts
        self._unix_mode = unix_mode
        self._tcp = tcp
        self._credentials = credentials
        self._require_token = require_token
        self._unix_users = unix_users
        self.budget = ByteBudget(limits.held_bytes)
        self.arrivals = Arrivals(limits.unfinished_bytes)
        self.lanes = {stream: Lane(stream, publish, self.budget, self.counters, clock) for stream in Stream}
        self._connections: set[asyncio.Task[None]] = set()
        self.numbers_are_host_s = False
        """Whether processes have the same numbers here as on the host; known once open."""

    async def __aenter__(self) -> Self:
        """Open the sockets and start. Raises ``SocketTaken``, or ``OSError`` for an address that cannot be had."""
        await asyncio.to_thread(warm_up, self.clock.now())
        self.numbers_are_host_s = self.users is not None and await asyncio.to_thread(shows_host, PROC)
        async with AsyncExitStack() as stack:
            # Bound before the task group, which would wrap what binding raises.
            unix = None if self.unix_path is None else await bind_unix_owned(self.unix_path, self._unix_mode, stack)
            tcp = None if self._tcp is None else bind_tcp(*self._tcp)
            if tcp is not None:
                stack.callback(tcp.close)
                self.tcp_address = tcp.getsockname()[:2]
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = [self._group.create_task(lane.run(), name=f"sdk-{lane.stream}") for lane in self.lanes.values()]
            stack.callback(lambda: [task.cancel() for task in tasks])
            stack.push_async_callback(self._flush)
            if unix is not None:
                server = await asyncio.start_unix_server(self._connected(False), sock=unix, limit=READ_BYTES)
                stack.callback(server.close)
            if tcp is not None:
                server = await asyncio.start_server(self._connected(True), sock=tcp, limit=READ_BYTES)
                stack.callback(server.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, let what is on its way become durable for a moment, and hang up."""
        if kind is not None and not issubclass(kind, asyncio.CancelledError):
            kind = error = trace = None  # the caller's own error goes on as it is, not wrapped by our task group
        await self._stack.__aexit__(kind, error, trace)

    def _connected(self, tcp: bool) -> Any:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._group.create_task(_Connection(self, reader, writer, tcp).serve(), name="sdk-connection")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return accept

    async def _flush(self) -> None:
        with suppress(TimeoutError):  # the SDKs keep what was not acknowledged
            async with asyncio.timeout(CLOSE_SECONDS):
                for lane in self.lanes.values():
                    await lane.idle()
        for task in list(self._connections):
            task.cancel()

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that were read and are not durable yet."""
        return self.budget.held

    def authorize(self, handshake: Handshake, uid: int | None, tcp: bool) -> None:
        """Check the peer's user, as the kernel says it, and the handshake's token. Raises :class:`WireRefusal`."""
        if not tcp and self._unix_users is not None and uid not in self._unix_users:
            message = f"processes of user {uid} may not report here: collect.users does not name that user"
            raise WireRefusal(Refused.USER_NOT_ALLOWED, message)
        if handshake.token is None:
            if tcp or self._require_token:
                message = f"job {handshake.job} needs its token here; set NANTUCKET_TOKEN to what this prints"
                raise WireRefusal(Refused.TOKEN_MISSING, f"{message}: nantucket job token {handshake.job}")
            return
        if self._credentials is not None and not self._credentials.check(handshake.job, handshake.token):
            message = (
                f"the token is not that of job {handshake.job}; make one with: nantucket job token {handshake.job}"
            )
            raise WireRefusal(Refused.TOKEN_WRONG, message)


class _Connection:
    """One SDK process, from its handshake to its end."""

    def __init__(
        self, listener: TrainingListener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tcp: bool
    ) -> None:
        self._listener = listener
        self._reader = reader
        self._writer = writer
        self._tcp = tcp
        self._counters = listener.counters
        self._limits = listener.limits
        self._sender = SenderClock(listener.clock)
        self._waited = 0.0
        self._said_unknown = False
        self._said: set[Refused] = set()
        self._open: dict[tuple[Stream, int], int] = {}
        """Messages that were handed on and have no answer yet, with their bytes."""
        self._open_bytes = 0
        self._arrived = 0.0
        self._unread = 0
        self._settled = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the other end closes, says something that ends the connection, or the listener closes."""
        self._counters.connections += 1
        self._counters.connections_now += 1
        try:
            hello = await self._greeted()
            if hello is not None:
                await self._serve(hello)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other end is gone; what it sent completely is on its way, and the rest it sends again
        finally:
            self._counters.connections_now -= 1
            if self._listener.users is not None:
                self._listener.users.training_ended(self)
            if self._listener.verdicts is not None:
                self._listener.verdicts.left(self)
            await self._close()

    async def _serve(self, hello: Hello) -> None:
        pid, uid = (None, None) if self._tcp else peer_of(self._writer)
        self._tell_who(hello, pid, uid)
        if self._listener.verdicts is not None:
            self._listener.verdicts.joined(self, hello.job, hello.attempt, self._send)
        teller = Teller(self._listener, hello)
        process = await process_of(pid, hello.stack_fd, hello.thread, teller.stack)
        if hello.wants_welcome:
            self._send({"type": "welcome", "events": sorted(SDK_EVENTS), "stacks": process.holds_stacks})
        try:
            said_goodbye = await self._read_rows(hello)
            if not said_goodbye and await process.gone():
                teller.ended_without_goodbye()
        except (OSError, asyncio.IncompleteReadError):
            if await process.gone():
                teller.ended_without_goodbye()
        finally:
            process.close()

    def _tell_who(self, hello: Hello, pid: int | None, uid: int | None) -> None:
        if self._listener.users is None:
            return
        pid = pid if self._listener.numbers_are_host_s else None  # the driver's are, and another's may be the same
        told = {name: hello.identity.get(name) for name in ("world_size", "role", "uuid")}
        peer = TrainingPeer(hello.job, hello.attempt, hello.rank, **told, gpu=hello.gpu, pid=pid, uid=uid)
        self._listener.users.saw_training(self, peer)

    async def _close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()  # the other end does not read its answers
        except OSError:
            pass  # it hung up first

    async def _greeted(self) -> Hello | None:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                handshake = await self._shake_hands()
        except TimeoutError:
            await self._refuse_http(
                WireRefusal(Refused.HEAD_LATE, f"no complete request within {self._limits.hello_seconds:g} s")
            )
            return None
        except WireRefusal as refusal:
            await self._refuse_http(refusal)
            return None
        if handshake is None:
            return None
        self._writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n".encode()
        )
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                text = await self._reader.readexactly(await self._length(HELLO_BYTES_MAX))
            return parse_hello(parse_object(text), handshake.job)
        except TimeoutError:
            await self._refuse_connection(
                WireRefusal(Refused.MESSAGE_LATE, f"no hello within {self._limits.hello_seconds:g} s")
            )
        except WireRefusal as refusal:
            await self._refuse_connection(refusal)
        return None

    async def _shake_hands(self) -> Handshake | None:
        """The handshake of an SDK; ``None`` where somebody asked for something else and has his answer."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as error:
            raise _head_too_large() from error
        if len(head) > HEAD_BYTES_MAX:
            raise _head_too_large()
        if self._counters.connections_now > self._limits.connections:
            raise WireRefusal(
                Refused.TOO_MANY_CONNECTIONS, f"{self._limits.connections} connections are open, which is the most"
            )
        if (answer := self._profiling_answer(head)) is not None:
            self._writer.write(answer)
            await self._writer.drain()
            return None
        handshake = parse_handshake(head[:-4])
        uid = None if self._tcp else peer_of(self._writer)[1]
        self._listener.authorize(handshake, uid, self._tcp)
        return handshake

    def _profiling_answer(self, head: bytes) -> bytes | None:
        switch = None if self._tcp else self._listener.profiling
        return None if switch is None else switch.answer(head, self._listener.clock.now())

    async def _read_rows(self, hello: Hello) -> bool:
        """Until the other end says goodbye (True) or is refused."""
        clock = self._listener.clock
        while True:
            idle_since = clock.monotonic()
            try:
                size = await self._length(MESSAGE_BYTES_MAX)
                self._waited = clock.monotonic() - idle_since
                text = await self._body(size)
            except WireRefusal as refusal:
                await self._refuse_connection(refusal)
                return False
            self._arrived = clock.monotonic()
            while self._open and self._open_bytes + size > self._limits.connection_bytes:
                await self._one_settled()
            await self._listener.budget.take(size)
            if await self._one_message(hello, text):
                return True
            await self._writer.drain()

    async def _body(self, size: int) -> bytes:
        """Read a message. It takes from what is held for the bus only once it is whole."""
        arrivals, seconds = self._listener.arrivals, self._limits.body_seconds
        unfinished = None
        try:
            async with asyncio.timeout(seconds) as deadline:
                with arrivals.reading(deadline) as unfinished:
                    while (missing := size - len(unfinished.data)) > 0:
                        if not (data := await self._reader.read(min(READ_BYTES, missing))):
                            raise asyncio.IncompleteReadError(bytes(unfinished.data), size)
                        arrivals.add(unfinished, data)
                    return bytes(unfinished.data)
        except TimeoutError as error:
            expected = f"expected {size} bytes within {seconds:g} s of the message's length"
            if unfinished is not None and unfinished.sent_away:
                expected = f"expected {size} bytes before {self._limits.unfinished_bytes} of unfinished ones were held"
            raise WireRefusal(Refused.MESSAGE_LATE, f"the message: {expected}, found fewer") from error

    async def _one_settled(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _one_message(self, hello: Hello, text: bytes) -> bool:
        """Hand one message on, for whose bytes there is room; True after ``bye``, once all before it is acknowledged.

        Whatever happens, its bytes are given back once.
        """
        handed_on = False
        try:
            body = self._parsed(text)
            if body is None:
                return False
            if body.get("type") == "bye":
                while self._open:
                    await self._one_settled()
                return True
            message = self._rows(hello, body)
            if message is not None:
                handed_on = True
                await self._accept(hello, message, len(text))
            return False
        finally:
            if not handed_on:
                await self._listener.budget.give_back(len(text))

    def _parsed(self, text: bytes) -> dict[str, Any] | None:
        try:
            return parse_object(text)
        except WireRefusal as refusal:
            self._refuse(refusal, {})
            self._unread += 1
            return None

    def _rows(self, hello: Hello, body: dict[str, Any]) -> RowsMessage | None:
        try:
            if body.get("type") != "rows":
                found = ascii(str(body.get("type"))[:40])
                raise WireRefusal(Refused.NOT_A_MESSAGE, f"type: expected 'rows' or 'bye', found {found}")
            rows = parse_rows(body)
            for row in rows.rows if rows.stream is Stream.EVENT else ():
                if row["kind"] == EventKind.STACK:
                    read_stack(row)
            self._listener.lanes[rows.stream].check(hello, rows, self._unread)
            return rows
        except WireRefusal as refusal:
            self._refuse(refusal, body)
            self._pass_over(hello, body)
            return None

    def _pass_over(self, hello: Hello, body: Mapping[str, Any]) -> None:
        """Keep count of a refused message's number, or that it had none."""
        stream, seq = body.get("stream"), body.get("seq")
        if type(seq) is int and isinstance(stream, str) and stream in self._listener.lanes:
            self._listener.lanes[Stream(stream)].passed_over(hello, seq)
        else:
            self._unread += 1

    async def _accept(self, hello: Hello, rows: RowsMessage, size: int) -> None:
        was_set = self._sender.received(rows.sent, self._arrived, self._waited)
        if was_set:
            LOGGER.warning(
                "the clock of job %s, rank %d was set by %+.1f s; its rows follow", hello.job, hello.rank, was_set
            )
        self._sender.place(rows.rows, rows.sent)
        self._counters.unknown_fields += rows.unknown
        if rows.unknown and not self._said_unknown:
            self._said_unknown = True
            LOGGER.warning(
                "%a of job %s sends columns that this collector does not know; they are left out", hello.sdk, hello.job
            )
        message = Message(hello, rows, size, self._sender.reading(), [self])
        if (key := (rows.stream, rows.seq)) not in self._open:
            self._open[key] = size
            self._open_bytes += size
        await self._listener.lanes[rows.stream].accept(message, self._listener.region, self._listener.node)

    async def _length(self, most: int) -> int:
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if not 0 < length <= most:
            expected = f"expected 1 to {most} bytes"
            raise WireRefusal(Refused.MESSAGE_TOO_LARGE, f"the message's length: {expected}, found {length}")
        return int(length)

    def acknowledge(self, stream: Stream, seq: int) -> None:
        """Say that a message is durable, if the other end is still there."""
        self._send({"type": "ack", "stream": stream, "seq": seq})
        self._settle(stream, seq)

    def refuse(self, stream: Stream, seq: int, refusal: WireRefusal) -> None:
        """Say that a message cannot be published; whoever says it has counted and logged it."""
        self._answer_refused(refusal, {"stream": stream, "seq": seq})
        self._settle(stream, seq)

    def _settle(self, stream: Stream, seq: int) -> None:
        self._open_bytes -= self._open.pop((stream, seq), 0)  # one that came twice is answered twice
        self._settled.set()

    def _send(self, body: Mapping[str, Any]) -> None:
        if self._writer.is_closing():
            return
        text = json.dumps(body, separators=(",", ":")).encode()
        self._writer.write(_LENGTH.pack(len(text)) + text)

    def _refuse(self, refusal: WireRefusal, body: dict[str, Any]) -> None:
        """Refuse one message; the connection goes on."""
        self._counters.refused[refusal.reason] += 1
        if refusal.reason not in self._said:  # once for each connection and reason; the counter has them all
            self._said.add(refusal.reason)
            LOGGER.warning("an SDK's message is refused: %s", refusal)
        self._answer_refused(refusal, body)

    def _answer_refused(self, refusal: WireRefusal, body: Mapping[str, Any]) -> None:
        answer: dict[str, Any] = {"type": "refuse", "reason": refusal.reason, "message": str(refusal)}
        if isinstance(body.get("stream"), str) and type(body.get("seq")) is int:
            answer |= {"stream": body["stream"][:16], "seq": body["seq"]}
        self._send(answer)

    async def _refuse_connection(self, refusal: WireRefusal) -> None:
        """Refuse the connection after its handshake."""
        self._counters.refused[refusal.reason] += 1
        LOGGER.warning("an SDK's connection is refused: %s", refusal)
        self._send({"type": "refuse", "reason": refusal.reason, "message": str(refusal)})
        await self._writer.drain()

    async def _refuse_http(self, refusal: WireRefusal) -> None:
        self._counters.refused[refusal.reason] += 1
        LOGGER.warning("an SDK's connection is refused: %s", refusal)
        status = _STATUS[refusal.reason]
        problem = {"type": "about:blank", "title": status[4:], "status": int(status[:3]), "detail": str(refusal)}
        body = json.dumps(problem | {"reason": refusal.reason}).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        if refusal.reason is Refused.UPGRADE_REQUIRED:
            head += f"Upgrade: {PROTOCOL}\r\n"
        self._writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await self._writer.drain()


def _head_too_large() -> WireRefusal:
    return WireRefusal(
        Refused.HEAD_TOO_LARGE, f"the request's head: expected at most {HEAD_BYTES_MAX} bytes, found more"
    )
