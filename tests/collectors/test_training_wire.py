"""The decoders of the SDK's wire, fuzzed: they refuse in words, or give what a frame can hold."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.errors import WireRefusal
from collectors.training_lanes import FRAME_BYTES_WANTED, FRAME_ROWS_MAX, Message, columns_of
from collectors.training_wire import (
    MESSAGE_ROWS_MAX,
    ROW_FIELDS,
    STREAM_SCHEMAS,
    Hello,
    RowsMessage,
    Stream,
    parse_handshake,
    parse_hello,
    parse_object,
    parse_rows,
)
from telemetry_bus.cells import DETAIL_BYTES_MAX
from telemetry_bus.frames import Frame, Run, batch_of, decode, encode
from telemetry_bus.schemas import SCHEMAS
from tests.sdk.recorder import hello, request, rows

BOOT = uuid.UUID(int=7)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def refused_or(parse: Callable[[], object]) -> object | None:
    """Return what was parsed, or ``None`` where it was refused."""
    try:
        return parse()
    except WireRefusal as refusal:
        words = str(refusal)
    assert "expected" in words or "here is only" in words
    assert len(words) < 600
    return None


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_handshake_or_are_refused(head: bytes) -> None:
    """No request makes the parser raise anything but a refusal."""
    refused_or(lambda: parse_handshake(head))
    refused_or(lambda: parse_handshake(request().replace("\n", "\r\n").encode().rstrip() + b"\r\n" + head))


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_are_refused(text: bytes) -> None:
    """No message makes the parser raise anything but a refusal."""
    refused_or(lambda: parse_object(text))


@given(st.dictionaries(st.sampled_from([*hello(BOOT), "gpu", "dp", "node", "role", "sdk"]), JSON))
def test_any_hello_is_taken_or_refused(changes: dict[str, Any]) -> None:
    """No field of hello makes the parser raise anything but a refusal."""
    refused_or(lambda: parse_hello(hello(BOOT) | changes, "j"))


@given(st.data(), st.sampled_from(Stream))
def test_rows_that_are_taken_make_a_frame_that_every_reader_takes(data: st.DataObject, stream: Stream) -> None:
    """What passes the checks passes the bus's own: nothing that an SDK says can spoil the frame of others."""
    cells = st.dictionaries(st.sampled_from([*ROW_FIELDS[stream], "later"]), JSON | st.integers(0, 9))
    sure = {"time": 1.0, "step": 1, "name": "n", "kind": "stack"}
    body = rows(0, *data.draw(st.lists(cells.map(lambda row: sure | row), min_size=1, max_size=4)), stream=stream)
    found = refused_or(lambda: parse_rows(body | data.draw(st.dictionaries(st.sampled_from(["seq", "sent"]), JSON))))
    if isinstance(found, RowsMessage):
        decode(encode(frame_of(found)))


def frame_of(message: RowsMessage) -> Frame:
    """Return the frame of one message of job ``j``, filled as the listener fills it."""
    who = Hello("sdk", BOOT, "j", "a", 0, None, {})
    shared = {"job": "j", "attempt": "a", "rank": 0, "simulated": False}
    known = SCHEMAS[STREAM_SCHEMAS[message.stream]].names
    message.rows[:] = [{name: value for name, value in shared.items() if name in known} | row for row in message.rows]
    columns = columns_of(message.stream, [Message(who, message, 0, lambda: 0.0, [])])
    schema_id = STREAM_SCHEMAS[message.stream]
    return Frame(schema_id, batch_of(schema_id, columns), (Run("s", BOOT, message.seq, len(message.rows), 1.0),))


@pytest.mark.parametrize("stream", Stream)
def test_the_columns_of_the_wire_are_columns_of_the_schema(stream: Stream) -> None:
    """Each field of a row is a column of the bus: none is checked and then lost."""
    assert set(ROW_FIELDS[stream]) <= set(SCHEMAS[STREAM_SCHEMAS[stream]].names)


def test_the_largest_frame_that_the_limits_allow_can_be_encoded() -> None:
    """The arithmetic of the limits is right: the longest identity in the most rows fits a frame, texts included."""
    count = FRAME_ROWS_MAX + MESSAGE_ROWS_MAX
    long = dict.fromkeys(("region", "node", "uuid", "role"), "x" * 253) | {"job": "x" * 96, "attempt": "x" * 96}
    texts = {"phase": "x" * 64, "scope": "microbatch", "first_nonfinite": "x" * 512}
    numbers = dict.fromkeys(ROW_FIELDS[Stream.TRAIN].keys() - texts.keys() - {"skipped"}, 1)
    columns = {name: [value] * count for name, value in (long | texts | numbers | {"rank": 1}).items()}
    encode(Frame("train/1", batch_of("train/1", columns), (Run("s", BOOT, 0, count, 1.0),)))
    events = {"time": 1, "kind": "stack", "simulated": False, "message": "x" * 4096, "detail": "x" * DETAIL_BYTES_MAX}
    most = FRAME_BYTES_WANTED // (4096 + DETAIL_BYTES_MAX)
    few = {name: [value] * most for name, value in events.items()}
    encode(Frame("event/1", batch_of("event/1", few), (Run("s", BOOT, 0, most, 1.0),)))
