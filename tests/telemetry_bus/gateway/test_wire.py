"""The wire of a link: its bytes are a contract, since collectors and gateways are upgraded apart."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.gateway import wire
from telemetry_bus.gateway.splitter import Skipped, Splitter, Whole
from telemetry_bus.gateway.wire import Kind, LinkFault, WireFault

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "gateway.md").read_text()

GOLDEN: dict[str, tuple[wire.Message, str]] = {
    "hello": (
        wire.Hello(1, "s3cret", "n1", "eu"),
        "17000000 01 4e54474c 0100 0600733363726574 02006e31 02006575",
    ),
    "welcome": (
        wire.Welcome(1, 1e6, 32 * 1024 * 1024, 16 * 1024 * 1024),
        "13000000 02 0100 0000000080842e41 00000002 00000001",
    ),
    "refused": (
        wire.Refused("full", 1.0, "no place"),
        "19000000 03 040066756c6c 000000000000f03f 08006e6f20706c616365",
    ),
    "put": (
        wire.Put(7, "telemetry.gpu", "r1", b"frame"),
        "21000000 04 0700000000000000 0d0074656c656d657472792e677075 02007231 6672616d65",
    ),
    "ack": (wire.Ack((7, 8)), "11000000 05 0700000000000000 0800000000000000"),
    "nack": (
        wire.Nack(7, 0.5, "unavailable", "away"),
        "24000000 06 0700000000000000 000000000000e03f 0b00756e617661696c61626c65 040061776179",
    ),
    "report": (wire.ReportFinding(9, b"finding"), "10000000 07 0900000000000000 66696e64696e67"),
    "reported": (
        wire.Reported(9, False, ("oncall:1:x",)),
        "18000000 08 0900000000000000 00 0100 0a006f6e63616c6c3a313a78",
    ),
    "grant": (wire.Grant(1e6), "09000000 09 0000000080842e41"),
    "ping": (wire.Ping(), "01000000 0a"),
    "pong": (wire.Pong(), "01000000 0b"),
    "verdict": (wire.VerdictDown(b"verdict"), "08000000 0c 76657264696374"),
}  # fmt: skip


def split(data: bytes, *, cut: int | None = None, room: bool = True) -> list[Whole | Skipped]:
    """The messages in `data`, fed in pieces of `cut` bytes; bodies are copied, since they are valid for a turn only."""
    splitter = Splitter(frozenset(Kind), lambda _: room)
    found: list[Whole | Skipped] = []
    for at in range(0, len(data), cut or len(data)):
        for part in splitter.feed(data[at : at + (cut or len(data))]):
            found += [part if isinstance(part, Skipped) else replace(part, body=memoryview(bytes(part.body)))]
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_of_every_message_stay_as_they_are(name: str) -> None:
    """What was released is written and read for ever."""
    message, golden = GOLDEN[name]
    data = bytes.fromhex(golden.replace(" ", ""))
    assert wire.encode_message(message) == data
    ((part),) = split(data)
    assert isinstance(part, Whole)
    assert wire.decode_message(part.kind, part.body) == message


def test_every_kind_has_golden_bytes() -> None:
    """No message goes without."""
    assert {bytes.fromhex(golden.replace(" ", ""))[4] for _, golden in GOLDEN.values()} == {*Kind}


def test_the_head_of_a_put_and_its_frame_are_the_whole_message() -> None:
    """A large frame is written behind its head without a copy."""
    put = wire.Put(7, "telemetry.gpu", "r1", b"frame")
    assert wire.put_head(7, "telemetry.gpu", "r1", 5) + b"frame" == wire.encode_message(put)


@given(cut=st.integers(1, 40))
def test_however_the_bytes_are_cut_the_messages_are_the_same(cut: int) -> None:
    """A stream has no edges."""
    data = b"".join(wire.encode_message(message) for message, _ in GOLDEN.values())
    parts = split(data, cut=cut)
    found = [wire.decode_message(part.kind, part.body) for part in parts if isinstance(part, Whole)]
    assert found == [message for message, _ in GOLDEN.values()]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(struct.pack("<IB", 1, 0), LinkFault.UNEXPECTED, id="kind-0"),
        pytest.param(struct.pack("<IB", 1, 99), LinkFault.UNEXPECTED, id="kind-99"),
        pytest.param(struct.pack("<IB", 0, Kind.PING), LinkFault.OVERSIZED, id="no-kind"),
        pytest.param(struct.pack("<IB", 2**32 - 1, Kind.PUT), LinkFault.OVERSIZED, id="four-gigabytes"),
        pytest.param(struct.pack("<IB", 100_000, Kind.ACK), LinkFault.OVERSIZED, id="long-ack"),
        pytest.param(struct.pack("<IB", 5_000, Kind.HELLO), LinkFault.OVERSIZED, id="long-hello"),
    ],
)
def test_a_head_that_cannot_be_ends_the_connection_before_its_body(data: bytes, fault: LinkFault) -> None:
    """Nothing is waited for, or made room for, on the word of a stranger."""
    with pytest.raises(WireFault) as caught:
        split(data)
    assert caught.value.fault is fault


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(Kind.PING, b"x", id="ping-with-a-body"),
        pytest.param(Kind.ACK, b"", id="ack-of-nothing"),
        pytest.param(Kind.ACK, b"1234567", id="half-an-id"),
        pytest.param(Kind.PUT, b"\x01", id="short-put"),
        pytest.param(Kind.PUT, bytes(8) + b"\xff\xff" + b"topic", id="topic-beyond-the-end"),
        pytest.param(Kind.PUT, bytes(8) + b"\x02\x00\xff\xfe", id="topic-that-is-no-text"),
        pytest.param(Kind.HELLO, b"NTGL\x01\x00\x00\x00", id="hello-without-a-node"),
        pytest.param(Kind.REPORTED, bytes(8) + b"\x02\x00\x00", id="neither-published-nor-not"),
        pytest.param(Kind.REPORTED, bytes(8) + b"\x00\xff\xff", id="too-many-receipts"),
    ],
)
def test_a_body_that_is_not_its_kinds_is_malformed(kind: Kind, body: bytes) -> None:
    """Fields fill a message exactly."""
    with pytest.raises(WireFault) as caught:
        wire.decode_message(kind, memoryview(body))
    assert caught.value.fault is LinkFault.MALFORMED


@given(kind=st.sampled_from(Kind), body=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_fault_of_the_wire(kind: Kind, body: bytes) -> None:
    """Whatever a stranger sends is read or refused."""
    try:
        message = wire.decode_message(kind, memoryview(body))
    except WireFault:
        return
    again = bytes(wire.encode_message(message)[5:])
    assert again == body


def test_a_large_frame_without_room_goes_by_and_the_next_message_is_read() -> None:
    """It is refused by its id, and the connection lives on; not more than its beginning was held."""
    put = wire.encode_message(wire.Put(7, "telemetry.gpu", "", bytes(1_000_000)))
    parts = split(put + wire.encode_message(wire.Ping()), cut=10_000, room=False)
    assert parts[0] == Skipped(Kind.PUT, 7)
    assert [part.kind for part in parts] == [Kind.PUT, Kind.PING]


def test_a_large_frame_with_room_gives_the_room_back_when_it_is_whole() -> None:
    """What was admitted is said with the message."""
    data = wire.encode_message(wire.Put(7, "telemetry.gpu", "", bytes(1_000_000)))
    (part,) = split(data, cut=10_000)
    assert isinstance(part, Whole)
    assert part.admitted == len(data)
    assert wire.decode_message(part.kind, part.body) == wire.Put(7, "telemetry.gpu", "", bytes(1_000_000))


def test_long_texts_are_cut_at_a_character() -> None:
    """A message for people may be cut; it stays a text."""
    nack = wire.Nack(1, math.inf, "full", "é" * 5_000)
    found = wire.decode_message(Kind.NACK, memoryview(wire.encode_message(nack))[5:])
    assert isinstance(found, wire.Nack)
    assert found.message == "é" * (wire.MESSAGE_TEXT_BYTES_MAX // 2)


def test_a_token_shows_in_no_repr() -> None:
    """A HELLO may be logged."""
    assert "s3cret" not in repr(wire.Hello(1, "s3cret", "n1", ""))


def test_the_page_about_the_gateway_has_every_message_and_reason() -> None:
    """docs/gateway.md is the wire's other half of the contract."""
    for kind in Kind:
        assert re.search(rf"^\| {kind.value} \| `{kind.name}` \|", PAGE, re.MULTILINE), kind
    for value in (*LinkFault, *wire.Answered):
        assert f"`{value.value}`" in PAGE, value
    for number in (wire.VERSION, wire.TEXT_BYTES_MAX, wire.IDS_MAX, FRAME_BYTES_MAX // 1024**2):
        assert f"{number:,}" in PAGE, number
