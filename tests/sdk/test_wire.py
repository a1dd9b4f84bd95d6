"""The wire between SDK and collector, held by recorded bytes: the two are released apart and must go on understanding.

``recorded/client_v1.bin`` is what the first release of the SDK sends, ``recorded/server_v1.bin`` what the first
release of the collector answers. They are never written again; a change that does not understand them needs a new
version of the protocol.
"""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import pytest

from collectors.training import TrainingListener
from nantucket import _wire
from nantucket._connection import _parse_head
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Client, Recorder

RECORDED = Path(__file__).parent / "recorded"
BOOT = uuid.UUID("594c99ed-a89f-4ea0-b464-7de201abdd59")
SENT = 1_700_000_000.25


def client_bytes() -> bytes:
    """Return what this SDK sends for one recorded process."""
    train = [
        {"time": 1_700_000_000.0, "step": 7, "loss": 2.5, "grad_norm": 0.0, "nonfinite": 0, "scope": "shard"},
        {
            "time": 1_700_000_000.125,
            "step": 8,
            "loss": "NaN",
            "nonfinite": 3,
            "first_nonfinite": "é.weight",
            "lr": 1e-05,
        },
    ]
    metric = {"time": 1_700_000_000.0, "step": 7, "name": "reward/mean", "value": "-Infinity"}
    event = {"time": 1_700_000_000.0, "kind": "job_start", "detail": {"sdk": "python/0.1.0", "world_size": 8}}
    hello = {"type": "hello", "version": _wire.VERSION, "sdk": "python/0.1.0", "boot": str(BOOT)}
    hello.update({"job": "leviathan-7b", "attempt": "123.0", "rank": 3, "world_size": 8, "role": "trainer"})
    return b"".join(
        [
            _wire.handshake("localhost", "leviathan-7b", "ntk1.token"),
            _wire.message(hello),
            _wire.rows_message("event", 0, SENT, [_wire.row_text(event)]),
            _wire.rows_message("train", 0, SENT, [_wire.row_text(row) for row in train]),
            _wire.rows_message("metric", 0, SENT, [_wire.row_text(metric)]),
            _wire.message({"type": "bye"}),
        ]
    )


def test_the_sdk_says_what_the_recorded_one_said() -> None:
    """The same process gives the same bytes: a collector of any release understands them."""
    assert client_bytes() == (RECORDED / "client_v1.bin").read_bytes()


async def test_the_collector_understands_the_recorded_sdk(tmp_path: Path) -> None:
    """The bytes of the first release still become the rows that they meant, and are answered as they were."""
    recorder = Recorder()
    async with TrainingListener(
        recorder.publish, ManualClock(SENT), node="n1", region="eu", unix_path=tmp_path / "c.sock"
    ) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        client.writer.write((RECORDED / "client_v1.bin").read_bytes())
        answered = await client.reader.read()
        await client.close()
    first, second = recorder.rows(Topic.TRAIN)
    assert (first["step"], first["loss"], first["grad_norm"], first["nonfinite"], first["lr"]) == (7, 2.5, 0.0, 0, None)
    assert (second["step"], second["first_nonfinite"], second["world_size"], second["rank"]) == (8, "é.weight", 8, 3)
    assert math.isnan(second["loss"])
    (metric,) = recorder.rows(Topic.METRICS)
    assert (metric["name"], metric["value"]) == ("reward/mean", -math.inf)
    runs = {(run.source, run.boot, run.seq, run.rows) for _, frame in recorder.frames for run in frame.manifest}
    process = "leviathan-7b/123.0/3"
    assert runs == {(f"{process}/{name}", BOOT, 0, rows) for name, rows in (("event", 1), ("train", 2), ("metric", 1))}
    head, _, rest = answered.partition(b"\r\n\r\n")
    recorded_head, _, recorded_rest = (RECORDED / "server_v1.bin").read_bytes().partition(b"\r\n\r\n")
    assert head == recorded_head
    inbox = _wire.Inbox()
    acknowledged = sorted(str(answer) for answer in inbox.feed(rest))
    assert acknowledged == sorted(str(answer) for answer in _wire.Inbox().feed(recorded_rest))[:3]


def test_the_sdk_understands_the_recorded_collector() -> None:
    """The answers of the first release are still understood, however the bytes are cut."""
    head, _, rest = (RECORDED / "server_v1.bin").read_bytes().partition(b"\r\n\r\n")
    assert _parse_head(head)[0] == 101
    inbox = _wire.Inbox()
    answers = [answer for index in range(len(rest)) for answer in inbox.feed(rest[index : index + 1])]
    assert [(answer["type"], answer.get("stream"), answer.get("seq")) for answer in answers] == [
        ("ack", "event", 0),
        ("ack", "train", 0),
        ("ack", "metric", 0),
        ("refuse", "train", 1),
        ("refuse", None, None),
    ]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00{", b"\x01\x00\x00\x001"])
def test_an_answer_that_is_none_is_said(data: bytes) -> None:
    """Whatever listens at the socket, the SDK believes nothing that is not in the protocol."""
    with pytest.raises(_wire.WireError, match=r"collector (sent|from)|from the collector"):
        _wire.Inbox().feed(data)
