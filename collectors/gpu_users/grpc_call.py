"""One unary gRPC call over a Unix socket: HTTP/2 by h2, which takes 1.4 MiB of memory where grpcio takes 9.7.

Blocks: for a thread. What the server sends is bounded in bytes and in time, whatever it is.
"""

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

from collectors.errors import CallFailed

READ_BYTES = 64 * 1024
DEADLINE_SECONDS = 2.0
"""A kubelet answers in milliseconds."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""gRPC's own limit for a message. 250 pods, the most that a kubelet is meant for, with 8 devices each are 200 KB."""
RECEIVED_BYTES_MAX = 2 * ANSWER_BYTES_MAX
"""Everything that is read, headers and what is no HTTP/2 too: a frame that announces 16 MiB would be waited for."""
WORDS_MAX = 200
"""Characters of a server's message that are repeated."""
_PREFIX = struct.Struct(">BI")
"""Of a gRPC message: whether it is compressed, and its length."""


@dataclass(slots=True)
class _Answer:
    status: str = "none"
    message: str = ""
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def take(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            if name == b":status" and value != b"200":
                self.message = f"HTTP status {value.decode('ascii', 'replace')[:WORDS_MAX]}"
            elif name == b"grpc-status":
                self.status = value.decode("ascii", "replace")[:WORDS_MAX]
            elif name == b"grpc-message":
                self.message = unquote(value.decode("ascii", "replace")[:WORDS_MAX])


def call(path: Path, method: str, request: bytes, *, seconds: float = DEADLINE_SECONDS) -> bytes:
    """The answer to ``request`` of ``method`` (``/package.Service/Method``), as its message's bytes, within
    ``seconds``. Raises :class:`~collectors.errors.CallFailed`."""
    end = time.monotonic() + seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            answer = _exchange(connection, method, request, end)
        return _message(answer)
    except TimeoutError as error:
        raise CallFailed(str(path), method, f"none within {seconds:g} s") from error
    except ProtocolError as error:
        raise CallFailed(str(path), method, f"no HTTP/2: {type(error).__name__}") from error
    except (OSError, ValueError) as error:
        raise CallFailed(str(path), method, str(error)) from error


def _exchange(connection: socket.socket, method: str, request: bytes, end: float) -> _Answer:
    http = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    http.initiate_connection()
    stream = http.get_next_available_stream_id()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": f"{max(1, round((end - time.monotonic()) * 1e3))}m",
    }
    http.send_headers(stream, list(headers.items()))
    http.send_data(stream, _PREFIX.pack(0, len(request)) + request, end_stream=True)
    answer = _Answer()
    room = RECEIVED_BYTES_MAX
    while not answer.ended:
        connection.sendall(http.data_to_send())
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        if not (data := connection.recv(READ_BYTES)):
            raise ValueError("the connection closed before the answer's end")
        if (room := room - len(data)) < 0:
            raise ValueError(f"more than {RECEIVED_BYTES_MAX} bytes")
        for event in http.receive_data(data):
            _take(http, answer, event)
    return answer


def _take(http: H2Connection, answer: _Answer, event: Event) -> None:
    if isinstance(event, ResponseReceived | TrailersReceived):
        answer.take(event.headers)
    elif isinstance(event, DataReceived):
        answer.body += event.data
        if len(answer.body) > _PREFIX.size + ANSWER_BYTES_MAX:
            raise ValueError(f"one of more than {ANSWER_BYTES_MAX} bytes")
        http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, StreamReset):
        raise ValueError(f"the call refused with HTTP/2's error {int(event.error_code)}")
    elif isinstance(event, StreamEnded):
        answer.ended = True


def _message(answer: _Answer) -> bytes:
    if answer.status != "0":
        raise ValueError(f"gRPC status {answer.status}: {answer.message}".removesuffix(": "))
    if len(answer.body) < _PREFIX.size:
        raise ValueError("one without a message")
    compressed, length = _PREFIX.unpack_from(answer.body)
    if compressed or length != len(answer.body) - _PREFIX.size:
        raise ValueError("what is not one plain message")
    return bytes(answer.body[_PREFIX.size :])
