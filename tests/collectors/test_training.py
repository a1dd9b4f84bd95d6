"""The listener for the SDK, over real sockets: what it takes, what it refuses, what it promises when it
acknowledges."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from collectors.credentials import JobCredentials, job_token
from collectors.errors import Refused, SocketTaken, UnsafeListener
from collectors.training import Limits, TrainingListener
from collectors.training_lanes import Counters
from collectors.training_memory import ByteBudget
from collectors.training_wire import MESSAGE_BYTES_MAX, MESSAGE_ROWS_MAX, Stream
from telemetry_bus.frames import Frame
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Client, Recorder, hello, request, rows

CREDENTIALS = JobCredentials(Secret(bytes(range(32))))


@asynccontextmanager
async def listening(folder: Path, recorder: Recorder, **options: Any) -> AsyncIterator[TrainingListener]:
    """Open a listener on a socket and a port."""
    settings: dict[str, Any] = {
        "unix_path": folder / "c.sock",
        "tcp": ("127.0.0.1", 0),
        "credentials": CREDENTIALS,
    } | options
    async with TrainingListener(recorder.publish, ManualClock(), node="n1", region="eu", **settings) as listener:
        yield listener


async def connected(listener: TrainingListener, boot: uuid.UUID | None = None, **changes: Any) -> Client:
    """Return a client that has said hello on the socket."""
    assert listener.unix_path is not None
    client = await Client.unix(listener.unix_path)
    await client.greet(boot, **changes)
    return client


async def test_a_message_is_acknowledged_only_when_it_is_durable(tmp_path: Path) -> None:
    """An acknowledgement means that publish has returned."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener)
        recorder.open.clear()
        client.send(rows(0))
        await recorder.entered.wait()
        answer = asyncio.ensure_future(client.answer())
        await asyncio.sleep(0)
        assert not answer.done()
        recorder.open.set()
        assert await answer == {"type": "ack", "stream": "train", "seq": 0}
        assert [row["step"] for row in recorder.rows(Topic.TRAIN)] == [0]
        await client.close()


async def test_rows_carry_who_made_them(tmp_path: Path) -> None:
    """A row on the bus has its job, attempt and rank, and where the SDK names none, the listener's node and region."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener, rank=3, role="rollout", dp=1)
        client.send(rows(0))
        client.send(rows(0, {"time": 1.0, "step": 5, "name": "reward", "value": 0.5}, stream="metric"))
        client.send(rows(0, {"time": 1.0, "kind": "job_start", "detail": {"a": 1}}, stream="event"))
        for _ in range(3):
            assert (await client.answer())["type"] == "ack"
        await client.close()
    (train,), (metric,), (event,) = (recorder.rows(topic) for topic in (Topic.TRAIN, Topic.METRICS, Topic.EVENTS))
    assert [train[name] for name in ("job", "attempt", "rank", "node", "region", "role", "dp", "tp")] == [
        *("j", "a", 3, "n1", "eu", "rollout", 1, None)
    ]
    assert (metric["name"], metric["value"], metric["layer"], metric["region"]) == ("reward", 0.5, None, "eu")
    assert (event["kind"], event["detail"], event["simulated"], event["rank"]) == ("job_start", '{"a":1}', False, 3)
    assert {run.source for _, frame in recorder.frames for run in frame.manifest} == {
        f"j/a/3/{stream}" for stream in ("train", "metric", "event")
    }


async def test_what_arrives_during_a_publish_goes_out_in_one_frame(tmp_path: Path) -> None:
    """Group commit: a slow log costs no more frames, and each process keeps its own run in the manifest."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        one, two = await connected(listener), await connected(listener, rank=1)
        recorder.open.clear()
        one.send(rows(0))
        await recorder.entered.wait()
        for seq in (1, 2):
            one.send(rows(seq))
            two.send(rows(seq - 1))
        async with asyncio.timeout(5):
            while listener.lanes[Stream.TRAIN].waiting < 4:
                await asyncio.sleep(0.001)
        recorder.open.set()
        for client, answers in ((one, 3), (two, 2)):
            assert [(await client.answer())["seq"] for _ in range(answers)] == list(range(answers))
            await client.close()
    assert [frame.rows for _, frame in recorder.frames] == [1, 4]
    assert recorder.ledger().frames_total == 5
    assert recorder.ledger().outstanding == 0


@pytest.mark.parametrize("durable", [True, False], ids=["after it was durable", "before it was durable"])
async def test_a_message_that_comes_again_is_not_published_again(tmp_path: Path, durable: bool) -> None:
    """After a reconnect the SDK sends what it was not told about; the listener takes it once, and acknowledges it."""
    recorder, boot = Recorder(), uuid.uuid4()
    async with listening(tmp_path, recorder) as listener:
        first = await connected(listener, boot)
        if not durable:
            recorder.open.clear()
        first.send(rows(0))
        if durable:
            await first.answer()
        else:
            await recorder.entered.wait()
        second = await connected(listener, boot)
        second.send(rows(0))
        async with asyncio.timeout(5):
            while listener.counters.duplicates == 0:
                await asyncio.sleep(0.001)
        recorder.open.set()
        assert await second.answer() == {"type": "ack", "stream": "train", "seq": 0}
        await first.close()
        await second.close()
    assert len(recorder.rows(Topic.TRAIN)) == 1
    assert listener.held_bytes == 0


async def test_while_the_bus_is_away_nothing_is_acknowledged_and_then_all_of_it_is(tmp_path: Path) -> None:
    """A bus that cannot be reached costs retries, no rows; what waited is stamped with the clock of its sending."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener)
        recorder.away = True
        client.send(rows(0))
        async with asyncio.timeout(5):
            while listener.counters.publish_retries == 0:
                await asyncio.sleep(0.001)
        assert recorder.frames == []
        assert isinstance(listener.clock, ManualClock)
        listener.clock.advance(60.0)
        recorder.away = False
        assert (await client.answer())["type"] == "ack"
        await client.close()
    (run,) = recorder.frames[0][1].manifest
    assert run.sent == pytest.approx(listener.clock.now())


async def test_what_is_held_is_bounded_and_then_reading_pauses(tmp_path: Path) -> None:
    """While the bus does not answer, the listener holds at most its budget; afterwards everything arrives."""
    recorder = Recorder()
    padding = " " * (MESSAGE_BYTES_MAX - 512)
    limits = Limits(held_bytes=8 * MESSAGE_BYTES_MAX)
    count = 24
    async with listening(tmp_path, recorder, limits=limits) as listener:
        client = await connected(listener)
        recorder.open.clear()

        async def send() -> None:
            for seq in range(count):
                client.send(rows(seq, {"time": 1.0, "step": seq, "later": padding}))
                await client.writer.drain()

        sending = asyncio.ensure_future(send())
        most = 0
        async with asyncio.timeout(30):
            while listener.held_bytes + MESSAGE_BYTES_MAX <= limits.held_bytes:
                await asyncio.sleep(0.001)
        for _ in range(50):
            most = max(most, listener.held_bytes)
            await asyncio.sleep(0.001)
        assert most <= limits.held_bytes
        assert not sending.done()
        recorder.open.set()
        assert [(await client.answer())["seq"] for _ in range(count)] == list(range(count))
        await sending
        await client.close()
    assert listener.counters.unknown_fields == count
    assert listener.held_bytes == 0


async def test_a_budget_lets_nobody_wait_for_ever() -> None:
    """A size beyond the whole budget is taken when nothing else is held."""
    budget = ByteBudget(10)
    await budget.take(8)
    large = asyncio.ensure_future(budget.take(100))
    small = asyncio.ensure_future(budget.take(2))
    await small
    assert not large.done()
    await budget.give_back(2)
    await budget.give_back(8)
    await large
    assert budget.held == 100


HTTP_REFUSALS = [
    pytest.param("GET /v1/sdk\n", 400, Refused.BAD_REQUEST, "expected 'GET /v1/sdk HTTP/1.1'", id="no version"),
    pytest.param(request(job=""), 400, Refused.BAD_REQUEST, "Nantucket-Job: expected 1 to 96", id="no job"),
    pytest.param(request(job="a/b"), 400, Refused.BAD_REQUEST, "found 'a/b'", id="a job with a slash"),
    pytest.param(request() + "Host: x\n", 400, Refused.BAD_REQUEST, "once each, found 'host'", id="a header twice"),
    pytest.param(request(path="/"), 404, Refused.NOT_FOUND, "here is only GET /v1/sdk", id="another path"),
    pytest.param(request(upgrade="h2c"), 426, Refused.UPGRADE_REQUIRED, "found 'h2c'", id="another protocol"),
    pytest.param(request(token="ntk1.x"), 403, Refused.TOKEN_WRONG, "not that of job j", id="a wrong token"),
    pytest.param(request() + "Authorization: Basic eA==\n", 403, Refused.TOKEN_WRONG, "Bearer", id="no bearer"),
    pytest.param(request() + f"X: {'x' * 9_000}\n", 431, Refused.HEAD_TOO_LARGE, "8192 bytes", id="a long head"),
    pytest.param(request() + f"X: {'x' * 200_000}\n", 431, Refused.HEAD_TOO_LARGE, "8192 bytes", id="a very long head"),
]


@pytest.mark.parametrize(("head", "status", "reason", "message"), HTTP_REFUSALS)
async def test_a_handshake_is_refused_in_clear_words(
    tmp_path: Path, head: str, status: int, reason: Refused, message: str
) -> None:
    """A refused handshake is an HTTP error with a problem that says what was expected, counted by its reason."""
    async with listening(tmp_path, Recorder()) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        found, problem = await client.http(head)
        assert (found, problem["status"], problem["reason"]) == (status, status, reason)
        assert message in problem["detail"]
        assert listener.counters.refused[reason] == 1
        await client.close()


async def test_a_port_takes_only_the_token_of_the_job(tmp_path: Path) -> None:
    """On a port a job needs its own token: none is 401, another job's is 403."""
    async with listening(tmp_path, Recorder()) as listener:
        assert listener.tcp_address is not None
        for token, status in ((None, 401), (CREDENTIALS.token("other"), 403), (CREDENTIALS.token("j"), 101)):
            client = await Client.tcp(listener.tcp_address)
            assert (await client.http(request(token=token)))[0] == status
            await client.close()
        assert listener.counters.refused[Refused.TOKEN_MISSING] == 1
        assert listener.counters.refused[Refused.TOKEN_WRONG] == 1


@pytest.mark.parametrize(("others", "status"), [(0, 101), (1, 403)], ids=["its user is named", "another is"])
async def test_on_the_socket_the_user_that_the_kernel_names_may_be_required(
    tmp_path: Path, others: int, status: int
) -> None:
    """Whoever can open the socket may report, unless users are named; what the peer says of itself does not count."""
    users = frozenset({os.getuid() + others})
    async with listening(tmp_path, Recorder(), unix_users=users) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        found, problem = await client.http(request(token=CREDENTIALS.token("j")))
        assert found == status
        assert listener.counters.refused[Refused.USER_NOT_ALLOWED] == others
        assert (f"user {os.getuid()} may not report" in problem.get("detail", "")) == bool(others)
        await client.close()


async def test_one_connection_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    """At the limit of connections a new one gets 503, and the others go on."""
    async with listening(tmp_path, Recorder(), limits=Limits(connections=3)) as listener:
        assert listener.unix_path is not None
        clients = [await connected(listener) for _ in range(3)]
        extra = await Client.unix(listener.unix_path)
        status, problem = await extra.http(request())
        assert (status, problem["reason"]) == (503, Refused.TOO_MANY_CONNECTIONS)
        clients[0].send(rows(0))
        assert (await clients[0].answer())["type"] == "ack"
        for client in (*clients, extra):
            await client.close()


def row(**changes: Any) -> dict[str, Any]:
    """Return a message of one train row with these cells."""
    return rows(7, {"time": 1.0, "step": 1} | changes)


def metric(**changes: Any) -> dict[str, Any]:
    """Return a message of one metric row with these cells."""
    return rows(7, {"time": 1.0, "step": 1, "name": "x"} | changes, stream="metric")


def event(**changes: Any) -> dict[str, Any]:
    """Return a message of one event with these cells."""
    return rows(7, {"time": 1.0, "kind": "stack"} | changes, stream="event")


MESSAGE_REFUSALS = [
    pytest.param(b"{", Refused.NOT_JSON, "expected a JSON object", id="half an object"),
    pytest.param(b'{"a":NaN}', Refused.NOT_JSON, 'expected the string "NaN"', id="a bare NaN"),
    pytest.param(b"\xff", Refused.NOT_JSON, "expected a JSON object", id="no UTF-8"),
    pytest.param(b"[" * 100_000, Refused.NOT_JSON, "expected a JSON object", id="100,000 lists deep"),
    pytest.param(b"1", Refused.NOT_A_MESSAGE, "found 1", id="a number"),
    pytest.param(
        {"type": "frame"}, Refused.NOT_A_MESSAGE, "expected 'rows' or 'bye', found 'frame'", id="another type"
    ),
    pytest.param(rows(7, stream="gpu"), Refused.BAD_STREAM, "train, metric, event, found 'gpu'", id="another stream"),
    pytest.param(rows(7) | {"stream": []}, Refused.BAD_STREAM, "found a list", id="a stream that is a list"),
    pytest.param(rows(7) | {"seq": -1}, Refused.BAD_SEQ, "found -1", id="a negative seq"),
    pytest.param(rows(7) | {"seq": True}, Refused.BAD_SEQ, "found True", id="a seq that is a bool"),
    pytest.param(rows(7) | {"sent": "now"}, Refused.BAD_SENT, "UTC seconds", id="sent is a word"),
    pytest.param(rows(7) | {"sent": 1e300}, Refused.BAD_SENT, "found 1e+300", id="sent in the far future"),
    pytest.param(rows(7) | {"rows": []}, Refused.BAD_ROWS, "found 0 rows", id="no rows"),
    pytest.param(rows(7) | {"rows": {}}, Refused.BAD_ROWS, "found an object", id="rows that are no list"),
    pytest.param(rows(7, *[{}] * (MESSAGE_ROWS_MAX + 1)), Refused.BAD_ROWS, "found 1025 rows", id="too many rows"),
    pytest.param(rows(7) | {"rows": [1]}, Refused.BAD_ROW, "rows[0]: expected a JSON object", id="a row that is none"),
    pytest.param(row(step=None), Refused.MISSING_CELL, "rows[0].step: expected a value", id="no step"),
    pytest.param(row(loss="x"), Refused.BAD_CELL, "rows[0].loss: expected a finite number", id="a word for a number"),
    pytest.param(row(loss=True), Refused.BAD_CELL, "found True", id="a bool for a number"),
    pytest.param(row(loss=10**400), Refused.BAD_CELL, "a whole number of 1329 bits", id="a number of 400 digits"),
    pytest.param(row(step=1.5), Refused.BAD_CELL, "found 1.5", id="half a step"),
    pytest.param(row(step=2**63), Refused.BAD_CELL, "64 bits", id="a step of 65 bits"),
    pytest.param(row(time=-1), Refused.BAD_CELL, "rows[0].time", id="a time before 1970"),
    pytest.param(row(nonfinite=-1), Refused.BAD_CELL, "from 0 to", id="a negative count"),
    pytest.param(row(microbatch=2**31), Refused.BAD_CELL, "2147483647", id="a microbatch of 33 bits"),
    pytest.param(row(skipped=1), Refused.BAD_CELL, "true or false", id="a number for a bool"),
    pytest.param(row(scope="mine"), Refused.BAD_CELL, "global, microbatch, shard", id="another scope"),
    pytest.param(row(phase="x" * 65), Refused.BAD_CELL, "1 to 64 characters", id="a long text"),
    pytest.param(row(phase="\ud800"), Refused.BAD_CELL, "surrogate", id="half a character"),
    pytest.param(metric(name="a\nb"), Refused.BAD_CELL, "control", id="a metric's name in two lines"),
    pytest.param(event(kind="xid"), Refused.BAD_CELL, "expected one of", id="an event of a node"),
    pytest.param(event(detail={"s": "x" * 40_000}), Refused.BAD_CELL, "at most 32768 bytes", id="a large detail"),
    pytest.param(event(detail=[]), Refused.BAD_CELL, "found a list", id="a detail that is a list"),
]


@pytest.mark.parametrize(("body", "reason", "message"), MESSAGE_REFUSALS)
async def test_a_refused_message_stops_nothing_else(tmp_path: Path, body: Any, reason: Refused, message: str) -> None:
    """A bad message is answered with its reason and what was expected, counted, and the next one is taken."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener)
        client.send(body)
        answer = await client.answer()
        assert (answer["type"], answer["reason"]) == ("refuse", reason)
        assert message in answer["message"]
        assert listener.counters.refused[reason] == 1
        client.send(rows(8))
        assert await client.answer() == {"type": "ack", "stream": "train", "seq": 8}
        assert listener.held_bytes == 0
        await client.close()


BOOT = uuid.uuid4()
HELLO_REFUSALS = [
    pytest.param(rows(0), Refused.HELLO_EXPECTED, "expected type 'hello', found 'rows'", id="rows first"),
    pytest.param(hello(BOOT, version=2), Refused.VERSION, "expected 1, found 2", id="another version"),
    pytest.param(hello(BOOT, version=True), Refused.VERSION, "found True", id="a bool for the version"),
    pytest.param(hello(BOOT, job="k"), Refused.WRONG_JOB, "expected 'j'", id="another job than in the handshake"),
    pytest.param(hello(BOOT) | {"boot": "x"}, Refused.BAD_HELLO, "boot: expected a UUID", id="no UUID"),
    pytest.param(hello(BOOT, attempt=""), Refused.BAD_HELLO, "attempt: expected 1 to 96", id="no attempt"),
    pytest.param(hello(BOOT, rank=-1), Refused.BAD_HELLO, "rank: expected a whole number", id="a negative rank"),
    pytest.param(hello(BOOT, dp="x"), Refused.BAD_HELLO, "dp: expected a whole number", id="a word for a coordinate"),
    pytest.param(b"{", Refused.NOT_JSON, "expected a JSON object", id="half an object"),
]


@pytest.mark.parametrize(("body", "reason", "message"), HELLO_REFUSALS)
async def test_a_refused_hello_ends_the_connection_with_its_reason(
    tmp_path: Path, body: Any, reason: Refused, message: str
) -> None:
    """Without knowing who speaks nothing is taken; the answer says what was expected, and the connection ends."""
    async with listening(tmp_path, Recorder()) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        await client.http(request())
        client.send(body)
        answer = await client.answer()
        assert (answer["type"], answer["reason"]) == ("refuse", reason)
        assert message in answer["message"]
        assert await client.reader.read() == b""
        assert listener.counters.refused[reason] == 1
        await client.close()


async def test_a_message_that_is_too_large_ends_its_connection_only(tmp_path: Path) -> None:
    """A length beyond the limit is answered before a byte of it is read, and another connection goes on."""
    async with listening(tmp_path, Recorder()) as listener:
        bad, good = await connected(listener), await connected(listener)
        bad.writer.write((MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))
        answer = await bad.answer()
        assert answer["reason"] == Refused.MESSAGE_TOO_LARGE
        assert "found 262145" in answer["message"]
        good.send(rows(0))
        assert (await good.answer())["type"] == "ack"
        await bad.close()
        await good.close()


HURRIED = Limits(hello_seconds=0.05, body_seconds=0.05)


async def test_who_connects_and_says_nothing_is_sent_away(tmp_path: Path) -> None:
    """A handshake has a deadline, which is answered with 408."""
    async with listening(tmp_path, Recorder(), limits=HURRIED) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        status, problem = await client.http_answer()
        assert (status, problem["reason"]) == (408, Refused.HEAD_LATE)
        assert problem["detail"] == "no complete request within 0.05 s"
        await client.close()


async def test_half_a_message_is_not_waited_for_without_end(tmp_path: Path) -> None:
    """A hello that does not come and a message that stops in the middle end their connection; an idle one stays."""
    async with listening(tmp_path, Recorder(), limits=HURRIED) as listener:
        assert listener.unix_path is not None
        idle, halved = await connected(listener), await connected(listener)
        silent = await Client.unix(listener.unix_path)
        await silent.http(request())
        halved.writer.write((1000).to_bytes(4, "little") + b"{")
        assert (await halved.answer())["message"].startswith("the message: expected 1000 bytes within 0.05 s")
        assert (await silent.answer())["message"] == "no hello within 0.05 s"
        assert listener.counters.refused[Refused.MESSAGE_LATE] == 2
        idle.send(rows(0))
        assert (await idle.answer())["type"] == "ack"
        assert listener.held_bytes == 0
        for client in (idle, halved, silent):
            await client.close()


def test_every_reason_to_refuse_has_its_test_and_starts_at_zero() -> None:
    """A reason is a metric label: each is shown from the start, and each is brought about by a test of this file."""
    assert Counters().refused == dict.fromkeys(Refused, 0)
    tested = {case.values[2] for case in HTTP_REFUSALS} | {case.values[1] for case in MESSAGE_REFUSALS + HELLO_REFUSALS}
    alone = {
        *(Refused.TOKEN_MISSING, Refused.TOO_MANY_CONNECTIONS, Refused.MESSAGE_TOO_LARGE),
        *(Refused.HEAD_LATE, Refused.MESSAGE_LATE, Refused.USER_NOT_ALLOWED),
        Refused.UNFRAMEABLE,  # in test_training_lanes.py, on the real bus
    }
    assert tested | alone == set(Refused)


async def test_a_socket_that_a_killed_collector_left_is_taken_over(tmp_path: Path) -> None:
    """A socket file that nobody answers at is replaced; its mode lets in the user and the group."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "c.sock"))
    left.close()
    async with listening(tmp_path, Recorder()) as listener:
        assert listener.unix_path is not None
        assert stat.S_IMODE(listener.unix_path.stat().st_mode) == 0o660
        client = await connected(listener)
        await client.close()
    assert not listener.unix_path.exists()


async def test_a_socket_at_which_a_collector_answers_is_left_to_it(tmp_path: Path) -> None:
    """A second collector does not start on the first one's path, and the first goes on."""
    async with listening(tmp_path, Recorder()) as listener:
        with pytest.raises(SocketTaken, match="another collector answers there"):
            async with listening(tmp_path, Recorder()):
                pass
        client = await connected(listener)
        await client.close()


async def test_a_file_at_the_sockets_path_is_not_removed(tmp_path: Path) -> None:
    """Only sockets are replaced."""
    (tmp_path / "c.sock").write_text("mine")
    with pytest.raises(SocketTaken, match="is not a socket"):
        async with listening(tmp_path, Recorder()):
            pass
    assert (tmp_path / "c.sock").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"tcp": ("0.0.0.0", 0)}, "expected a loopback address", id="a public address"),
        pytest.param({"credentials": None}, "expected credentials", id="a port without credentials"),
        pytest.param({"unix_path": None, "tcp": None}, "found neither", id="nowhere"),
        pytest.param({"unix_path": "/" + "x" * 108}, "at most 107 bytes", id="a long path"),
    ],
)
async def test_a_listener_does_not_stand_where_it_must_not(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """What would let anybody write a job's rows, or cannot be opened, is refused before anything is opened."""
    with pytest.raises(UnsafeListener, match=message):
        async with listening(tmp_path, Recorder(), **options):
            pass


async def test_closing_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    """What was read before closing becomes durable and is acknowledged, if the bus is there."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener)
        recorder.open.clear()
        client.send(rows(0))
        await recorder.entered.wait()
        asyncio.get_running_loop().call_later(0.05, recorder.open.set)
    assert (await client.answer())["type"] == "ack"
    assert len(recorder.rows(Topic.TRAIN)) == 1
    await client.close()


async def test_a_number_far_ahead_is_refused(tmp_path: Path) -> None:
    """One job's jump of numbers must not look like a million lost frames at the reader."""
    async with listening(tmp_path, Recorder()) as listener:
        client = await connected(listener)
        for seq in (5, 5 + 1025, 6):
            client.send(rows(seq))
        found = [await client.answer() for _ in range(3)]
        by_seq = {answer["seq"]: answer.get("message", answer["type"]) for answer in found}
        assert by_seq == {5: "ack", 6: "ack", 1030: "seq: expected at most 1029 after 5, found 1030"}
        await client.close()


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(lambda seq: rows(seq, {"time": 1.0, "step": 1, "loss": "x"}), id="for a cell"),
        pytest.param(lambda seq: rows(seq) | {"sent": None}, id="for its time"),
        pytest.param(lambda seq: b"{", id="before its number could be read"),
        pytest.param(lambda seq: rows(seq) | {"seq": str(seq)}, id="for a number that is a text"),
    ],
)
async def test_refused_messages_do_not_shut_the_stream(tmp_path: Path, refused: Callable[[int], Any]) -> None:
    """However many messages in a row were refused, the next good one is taken: an SDK heals without a restart."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        client = await connected(listener)
        client.send(rows(0))
        assert (await client.answer())["type"] == "ack"
        for seq in range(1, 1_200):
            client.send(refused(seq))
            assert (await client.answer())["type"] == "refuse"
        client.send(rows(1_200))
        assert await client.answer() == {"type": "ack", "stream": "train", "seq": 1_200}
        client.send(rows(1_200 + 1_200 + 1_024))
        assert (await client.answer())["reason"] == Refused.BAD_SEQ
        await client.close()


async def test_closing_does_not_wait_for_who_does_not_read(tmp_path: Path) -> None:
    """A client that never reads its answers holds up nobody, not even the end."""
    recorder = Recorder()
    async with listening(tmp_path, recorder) as listener:
        deaf = await connected(listener)
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads is a ReadTransport

        async def send() -> None:
            for seq in range(1_000_000):
                deaf.send(b"{" + b" " * (seq % 7))
                await deaf.writer.drain()

        sending = asyncio.ensure_future(send())
        before = -1
        while (now := listener.counters.refused[Refused.NOT_JSON]) != before or now == 0:
            before = now
            await asyncio.sleep(0.2)
        other = await connected(listener)
        other.send(rows(0))
        assert (await other.answer())["type"] == "ack"
        await other.close()
    sending.cancel()
    with suppress(asyncio.CancelledError, OSError):
        await sending
    deaf.writer.transport.abort()


async def test_a_fault_of_publishing_ends_the_listener_loudly(tmp_path: Path) -> None:
    """An error that is no outage is ours: it comes out of the listener, and is not retried for ever."""

    async def broken(_topic: Topic, _frame: Frame) -> None:
        raise ZeroDivisionError

    async def opened_and_used() -> None:
        async with TrainingListener(broken, ManualClock(), node="n", unix_path=tmp_path / "c.sock") as listener:
            client = await connected(listener)
            client.send(rows(0))
            try:
                await asyncio.Event().wait()
            finally:
                client.writer.close()

    with pytest.raises(ExceptionGroup) as caught:
        await opened_and_used()
    assert caught.group_contains(ZeroDivisionError)


async def test_no_secret_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the secret nor a token is in a repr, a log line or an answer."""
    token = CREDENTIALS.token("other")
    async with listening(tmp_path, Recorder()) as listener:
        assert listener.tcp_address is not None
        client = await Client.tcp(listener.tcp_address)
        with caplog.at_level(logging.DEBUG):
            _, problem = await client.http(request(token=token))
        await client.close()
    shown = " ".join([str(problem), caplog.text, repr(CREDENTIALS), repr(vars(listener)), str(Secret(bytes(32)))])
    assert token not in shown
    assert str(bytes(range(32)))[2:-1] not in shown


def test_a_token_is_of_one_job_and_one_secret() -> None:
    """A token opens one job; another secret makes another one, and a short secret is refused."""
    token = job_token(bytes(range(32)), "j")
    assert token == "ntk1.q3bAIXw_eWDjrMQkF6CTv7NQcWOJpfEOqVIN7L6BGZ4"
    assert CREDENTIALS.check("j", token)
    assert not CREDENTIALS.check("k", token)
    assert not JobCredentials(Secret(bytes(32))).check("j", token)
    assert not CREDENTIALS.check("j", "\udc80")
    with pytest.raises(ValueError, match="expected at least 32"):
        JobCredentials(Secret(b"short"))
