"""The thread that carries rows to the collector: it polls, encodes, sends, and keeps all until it is acknowledged."""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from time import sleep
from typing import Any, Callable, NamedTuple, Protocol, Union

from nantucket import _clock, _wire
from nantucket._buffer import Row, RowBuffer
from nantucket._connection import Address, BadUrl, Connection, Refused, address_of, connect
from nantucket._heed import Heed
from nantucket._identity import Identity
from nantucket._life import Life
from nantucket._pulse import Pulse
from nantucket._say import Voice
from nantucket._secret import Secret
from nantucket._values import Rows, rows_of
from nantucket._version import __version__

POLL_SECONDS = 0.01
"""How often the thread looks at the hand-off: on average 5 ms of delay, 100 short looks a second. It is polled because
waking a thread from ``log`` costs the training step 26 us and more, appending to a deque well under one."""
HANDOFF_MAX = 16_384
"""``log`` calls that may lie between the training loop and this thread: 1.6 s of 10,000 calls a second without one
look. Beyond twice that a call is dropped whatever it carries; between the two, unless it is critical."""
LATER_MAX = 1_024
"""Calls that may wait for their numbers to come from a device, in the order in which they were made."""
DRAIN_MAX = 1_024
"""Calls taken at a look, some 20 ms of conversion: the thread then sees to the socket before it goes on."""
TRAIN_ROWS_MAX = 16_384
TRAIN_BYTES_MAX = 6 * 1024 * 1024
"""Train rows that wait for a collector: 160 s of 100 rows/s; such a row has some 350 bytes of JSON."""
METRIC_ROWS_MAX = 65_536
METRIC_BYTES_MAX = 8 * 1024 * 1024
"""Metric rows: 30 s of 200 metrics, 10 times a second, is 60,000 rows of some 110 bytes."""
EVENT_ROWS_MAX = 64
MESSAGE_CHARACTERS_MAX = 4_096
EVENT_BYTES_MAX = 256 * 1024
"""Events of the SDK itself: a start, an end, and one count of dropped rows per reconnect."""
WINDOW_MESSAGES = 16
"""Messages of a stream that are sent and not yet acknowledged: 4,096 rows, or about 1.5 MiB. At one commit of some 10
ms each way that is more than 100,000 rows a second; what waits beyond it waits unnumbered, where the bounds above
hold."""
RETRY_SECONDS_FIRST = 0.05
RETRY_SECONDS_MAX = 1.0
"""The longest pause between two attempts to connect, so that a collector that comes back is found within a second."""
RETRY_SECONDS_REFUSED = 10.0
"""The pause after an answer that will not change by itself (a wrong token, another protocol)."""
QUIET_SECONDS = 3.0
"""An absence of the collector shorter than this (a restart) is not worth a line in the job's log."""
ERROR_PAUSE_SECONDS = 1.0
"""The pause after a fault of the SDK's own, so that a fault that stays costs the job next to nothing."""
DROPPED_SECONDS = 1.0
"""Under a lasting overload the collector is told what was dropped once a second."""
CONNECT_ALLOWANCE_SECONDS = 3.0
"""What an attempt to connect and shake hands may take beyond the deadline that was given to ``stop``."""
STREAMS = ("event", "train", "metric")
LATER_KINDS = frozenset({"heartbeat", "phase"})
"""Events that a collector of the first version refuses: they are sent once it has said that it takes them."""
COUNTED = ("rows", "acknowledged", "refused", "unusable", "errors", "dropped")


class Later(Protocol):
    """A call whose numbers may still be on a device."""

    @property
    def ready(self) -> bool:
        """Whether they are here. It does not wait."""

    def rows(self) -> Rows:
        """What it comes to, once it is :attr:`ready`."""


Call = Union["tuple[float, object, Mapping[str, object]]", Later]


class Sent(NamedTuple):
    """A numbered message that waits for its acknowledgement."""

    rows: list[bytes]
    seq: int


class Stream:
    """The rows of one schema: what waits, what is under way, and the number of the next message."""

    def __init__(self, name: str, rows_max: int, bytes_max: int) -> None:
        self.name = name
        self.waiting = RowBuffer(rows_max, bytes_max)
        self.under_way: OrderedDict[int, Sent] = OrderedDict()
        self.next_seq = 0

    @property
    def rows(self) -> int:
        """Rows that are not acknowledged."""
        return len(self.waiting) + sum(len(sent.rows) for sent in self.under_way.values())

    def next_message(self) -> Sent | None:
        """Number the next message, if there are rows and the window has room."""
        if len(self.under_way) >= WINDOW_MESSAGES or not len(self.waiting):
            return None
        rows = self.waiting.take(_wire.MESSAGE_ROWS_MAX, _wire.MESSAGE_BYTES_MAX)
        sent = self.under_way[self.next_seq] = Sent(rows, self.next_seq)
        self.next_seq += 1
        return sent


class Sender:
    """Owns the queue and the thread. ``put`` is called by the training loop, everything else by the thread."""

    def __init__(self, identity: Identity, url: Callable[[], str], token: Secret | None, voice: Voice) -> None:
        self.identity = identity
        self.heed: Heed | None = None
        """Who is told of verdicts, and of rows that are not finite."""
        self.life: Life | None = None
        """Who knows how long steps take."""
        self.pulse: Pulse | None = None
        """Who tells of a training thread that says nothing."""
        self.boot = uuid.uuid4()
        # All keys from the start: the dictionary does not change its size while the training loop reads it.
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.handoff: deque[Call] = deque()
        self._later: deque[Later] = deque()
        self._announced: deque[dict[str, Any]] = deque(maxlen=EVENT_ROWS_MAX)
        self._taken_kinds: frozenset[str] | None = None
        """The kinds of events that the collector takes, once one has answered."""
        self._url = url
        self._token = token
        self._voice = voice
        self._connection: Connection | None = None
        self._streams = {
            "event": Stream("event", EVENT_ROWS_MAX, EVENT_BYTES_MAX),
            "train": Stream("train", TRAIN_ROWS_MAX, TRAIN_BYTES_MAX),
            "metric": Stream("metric", METRIC_ROWS_MAX, METRIC_BYTES_MAX),
        }
        self._overflow = (
            threading.RLock()
        )  # taken only where a call is dropped; re-entrant for a log() in a signal handler
        self._overflowed = 0
        self._dropped_said = 0
        self._dropped_say_at = 0.0
        self._random = random.Random()
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS_FIRST
        self._away_since = _clock.monotonic()
        self._stop = threading.Event()
        self._deadline = 0.0
        self._grace = 0.0
        self._last_call = 0.0
        self._last_words: dict[str, Any] | None = None
        self._bye_sent = False
        self._thread = threading.Thread(target=self._run, name="nantucket-sender", daemon=True)

    def start(self, detail: dict[str, Any]) -> None:
        """Start the thread; ``detail`` goes into the ``job_start`` event."""
        self.event("job_start", detail)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Rows that were dropped because a bound was reached, and rows that the collector refused."""
        return self.counts["dropped"] + self._overflowed + self.counts["refused"]

    def put(self, call: Call) -> None:
        """Hand over one ``log`` call: an append to a deque. At the bound the call is dropped and counted."""
        if len(self.handoff) >= HANDOFF_MAX and not self._makes_room_for(call):
            with self._overflow:
                self._overflowed += 1
            return
        self.handoff.append(call)

    def _makes_room_for(self, call: Call) -> bool:
        # What lies on a device may be critical.
        return len(self.handoff) < 2 * HANDOFF_MAX and (not isinstance(call, tuple) or rows_of(*call).critical)

    def stop(self, seconds: float, grace_seconds: float, last_words: dict[str, Any]) -> int:
        """Send what waits, for at most ``seconds``, and end the thread. Return how many rows were not delivered.

        While no collector is connected, it is waited for only ``grace_seconds``. ``last_words`` is the ``job_end``
        detail.
        """
        self._last_words = last_words
        now = _clock.monotonic()
        self._deadline, self._grace = now + seconds, now + grace_seconds
        self._last_call = now + seconds / 2
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds + CONNECT_ALLOWANCE_SECONDS)
        if self.pulse is not None and not self._thread.is_alive():
            self.pulse.close()
        return self.waiting

    @property
    def waiting(self) -> int:
        """Training and metric rows that are not acknowledged, and calls that are no rows yet."""
        rows = sum(stream.rows for stream in self._streams.values() if stream.name != "event")
        return rows + len(self.handoff) + len(self._later)

    def abandon(self) -> None:
        """In a forked child, where the thread does not exist: let go of the parent's rows and of the copied socket.

        No lock is touched: the thread may have held it at the moment of the fork, and then nobody here would release
        it.
        """
        self.handoff = deque()
        if self.pulse is not None:
            self.pulse.abandon()
        if self._connection is not None:
            self._connection.close()

    def event(self, kind: str, detail: dict[str, Any]) -> None:
        """Queue an event of the SDK itself. Called by the thread, or before it has started."""
        row = {"time": _clock.now(), "kind": kind, "detail": detail}
        self._put(self._streams["event"], row, critical=True)

    def announce(self, kind: str, detail: dict[str, Any], step: int | None = None, message: str = "") -> None:
        """Queue an event from any thread. Of more than :data:`EVENT_ROWS_MAX` at once the oldest go."""
        row: dict[str, Any] = {"time": _clock.now(), "kind": kind, "detail": detail}
        if step is not None:
            row["step"] = step
        if message:
            row["message"] = message[:MESSAGE_CHARACTERS_MAX]
        self._announced.append(row)

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(POLL_SECONDS)
            try:
                self._look()
                if stopping and self._ended():
                    self._disconnect()
                    return
            except Exception as error:  # noqa: BLE001  whatever is wrong with the SDK, the job trains on and is told once
                self.counts["errors"] += 1
                self._voice.once("error", "reporting failed and goes on: %s: %s", type(error).__name__, error)
                self._disconnect()
                sleep(ERROR_PAUSE_SECONDS)
            if stopping:
                sleep(POLL_SECONDS)

    def _look(self) -> None:
        if self.pulse is not None and not self._stop.is_set():
            self.pulse.look()
        self._drain()
        if self._connection is None and _clock.monotonic() >= self._retry_at:
            self._connect()
        if self._connection is not None:
            try:
                self._exchange(self._connection)
            except (OSError, _wire.WireError):
                self._disconnect()
                self._retry_at = max(self._retry_at, _clock.monotonic() + self._pause())

    def _ended(self) -> bool:
        now = _clock.monotonic()
        if self._last_words is not None and not self._waiting and (not self._rows_left() or now >= self._last_call):
            self.event("job_end", {**self._last_words, "rows_dropped": self.dropped})
            self._last_words = None
            return False
        if now >= self._deadline or (self._connection is None and now >= self._grace):
            return True
        if self._waiting or any(stream.rows for stream in self._streams.values()) or self._connection is None:
            return False
        if not self._bye_sent:
            self._bye_sent = True
            self._connection.send(_wire.message({"type": "bye"}))
        return not self._connection.unsent

    @property
    def _waiting(self) -> bool:
        """Whether something was handed over that is no row yet."""
        sendable = self._announced and self._taken_kinds is not None
        return bool(self.handoff or sendable or self._later)

    def _rows_left(self) -> bool:
        """Whether rows are not yet durable: the end of a job must not overtake its last steps."""
        return any(stream.rows for stream in self._streams.values() if stream.name != "event")

    def _drain(self) -> None:
        for _ in range(len(self._announced)):
            event = self._announced.popleft()
            if event["kind"] in LATER_KINDS and self._taken_kinds is None:
                self._announced.append(event)  # nobody has answered yet
            elif event["kind"] not in LATER_KINDS or event["kind"] in (self._taken_kinds or ()):
                self._put(self._streams["event"], event, critical=True)
        for _ in range(min(len(self.handoff), DRAIN_MAX)):
            call = self.handoff.popleft()
            if isinstance(call, tuple):
                self._take(rows_of(*call))
            elif call.ready and not self._later:
                self._take(call.rows())
            else:
                self._later.append(call)
        while self._later and (self._later[0].ready or len(self._later) > LATER_MAX):
            call = self._later.popleft()
            if call.ready:
                self._take(call.rows())
            else:
                self.counts["dropped"] += 1

    def _take(self, rows: Rows) -> None:
        for problem in rows.problems:
            self.counts["unusable"] += 1
            self._voice.once_for(problem.partition(":")[0], "run.log: %s (said once; counted)", problem)
        if rows.train is not None:
            if self.life is not None:
                self.life.fill(rows.train)
            self._put(self._streams["train"], rows.train, rows.critical)
            if rows.critical and self.heed is not None:
                self.heed.saw(rows.train)
        for row in rows.metrics:
            self._put(self._streams["metric"], row, type(row["value"]) is str)

    def _put(self, stream: Stream, row: dict[str, Any], critical: bool) -> None:
        self.counts["rows"] += 1
        dropped = stream.waiting.put(Row(_wire.row_text(row), critical))
        if dropped:
            self.counts["dropped"] += dropped
            self._voice.once(
                "dropped",
                "the queue for the collector is full (%d rows): the oldest rows are dropped and counted (run.dropped)",
                len(stream.waiting),
            )

    def _connect(self) -> None:
        try:
            address = address_of(self._url())
        except BadUrl as error:
            self._voice.once("url", "%s; nothing is reported", error)
            self._retry_at = _clock.monotonic() + RETRY_SECONDS_REFUSED
            return
        try:
            token = None if self._token is None else self._token.reveal()
            self._connection = connect(address, _wire.handshake(address.host, self.identity.job, token))
            self._greet(self._connection)
        except Refused as refused:
            self._refused(refused.status, refused.detail)
        except (OSError, _wire.WireError) as error:
            self._disconnect()
            self._retry_at = _clock.monotonic() + self._pause()
            self._still_away(address, error)

    def _greet(self, connection: Connection) -> None:
        """Say who this is, say what was dropped, and send again what was not acknowledged, with the clock of now."""
        identity = self.identity
        hello = {"type": "hello", "version": _wire.VERSION, "sdk": f"python/{__version__}", "boot": str(self.boot)}
        hello["welcome"] = True
        hello.update({"job": identity.job, "attempt": identity.attempt, "rank": identity.rank, **identity.extra})
        if self.pulse is not None:
            hello.update(self.pulse.hello())
        connection.send(_wire.message(hello))
        for stream in self._streams.values():
            for sent in stream.under_way.values():
                connection.send(_wire.rows_message(stream.name, sent.seq, _clock.now(), sent.rows))

    def _exchange(self, connection: Connection) -> None:
        for answer in connection.receive():
            self._answered(answer)
        self._count_dropped()
        connection.flush()
        for name in STREAMS:
            while not connection.unsent:
                sent = self._streams[name].next_message()
                if sent is None:
                    break
                connection.send(_wire.rows_message(name, sent.seq, _clock.now(), sent.rows))

    def _count_dropped(self) -> None:
        """Tell the collector how many rows it will never see, once it takes rows again."""
        now = _clock.monotonic()
        if self._retry_seconds != RETRY_SECONDS_FIRST or now < self._dropped_say_at:
            return
        if self._overflowed:
            self._voice.once(
                "burst",
                "run.log was called faster than the sender takes calls (%d wait): the newest are dropped and counted "
                "(run.dropped)",
                HANDOFF_MAX,
            )
        total = self.dropped
        if total > self._dropped_said:
            self.event("rows_dropped", {"rows": total - self._dropped_said, "total": total})
            self._dropped_said = total
            self._dropped_say_at = now + DROPPED_SECONDS

    def _answered(self, answer: dict[str, Any]) -> None:
        kind, name, seq = answer.get("type"), answer.get("stream"), answer.get("seq")
        if kind == "verdict" and self.heed is not None:
            self.heed.heard(answer, _clock.now())
            return
        if kind == "welcome":
            self._welcomed(answer)
            return
        if kind == "refuse" and seq is None:
            self._refused(0, ascii(str(answer.get("message"))[:300])[1:-1])
            raise ConnectionResetError("the collector refused this connection")
        if kind not in ("ack", "refuse") or name not in self._streams or type(seq) is not int:
            return  # a newer collector may say more than this version understands
        sent = self._streams[name].under_way.pop(seq, None)
        if sent is None:
            return
        if self._taken_kinds is None:
            self._taken_kinds = frozenset()  # it has answered, and said no more than the first version does
        if kind == "ack":
            self.counts["acknowledged"] += len(sent.rows)
            self._connected()
        else:
            self.counts["refused"] += len(sent.rows)
            text = ascii(str(answer.get("message"))[:300])[1:-1]
            self._voice.once("refused", "the collector refused %d rows: %s (said once; counted)", len(sent.rows), text)

    def _welcomed(self, answer: dict[str, Any]) -> None:
        """The collector says what it takes beyond the first version of the wire."""
        events = answer.get("events")
        self._taken_kinds = frozenset(name for name in events if type(name) is str) if type(events) is list else None
        if self.pulse is not None:
            self.pulse.held = answer.get("stacks") is True

    def _connected(self) -> None:
        """The collector takes rows: the next absence is a new one."""
        self._retry_seconds = RETRY_SECONDS_FIRST
        if self._voice.over("away") | self._voice.over("status"):
            self._voice.once("back", "the collector takes rows again", level=logging.INFO)
            self._voice.over("back")

    def _still_away(self, address: Address, error: Exception) -> None:
        if _clock.monotonic() - self._away_since >= QUIET_SECONDS:
            self._voice.once(
                "away",
                "no collector at %s (%s); the job trains on, rows wait in a bounded queue and it is tried again",
                address,
                error,
            )

    def _refused(self, status: int, detail: str) -> None:
        if self._token is not None:
            detail = self._token.masked(detail)
        self._voice.once(
            "status", "the collector refused this job%s: %s", f" (HTTP {status})" if status else "", detail
        )
        busy = status in (408, 429, 503)
        self._retry_at = _clock.monotonic() + (self._pause() if busy else RETRY_SECONDS_REFUSED)

    def _pause(self) -> float:
        """The next pause before connecting: doubled each time up to the bound, with half of it left to chance."""
        pause = self._retry_seconds
        self._retry_seconds = min(2 * pause, RETRY_SECONDS_MAX)
        return pause * self._random.uniform(0.5, 1.0)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            if self.pulse is not None:
                self.pulse.held = False
            self._away_since = _clock.monotonic()
