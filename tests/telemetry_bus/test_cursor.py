"""A cursor is a text that a reader keeps and gives back."""

from __future__ import annotations

import pytest

from telemetry_bus.cursor import CURSOR_CHARACTERS_MAX, WrongCursor, cursor_text, parse_cursor


@pytest.mark.parametrize(
    ("cursor", "text"),
    [({0: 120}, "120"), ({0: 120, 1: 98}, "0:120,1:98"), ({3: 7}, "3:7"), ({4097: 1, 2: 5}, "2:5,4097:1")],
    ids=["one partition", "two", "another one alone", "of two buses"],
)
def test_a_cursor_comes_back_as_it_was(cursor: dict[int, int], text: str) -> None:
    """What is written is what is read."""
    assert cursor_text(cursor) == text
    assert parse_cursor(text, "telemetry.gpu", 1) == cursor


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no number"),
        ("-1", "no number"),
        ("1e3", "no number"),
        ("٣", "no number"),
        (str(1 << 63), "no number"),
        ("1" * 100, "no number"),
        ("0:1,", "no partition"),
        ("0:1,7", "no partition"),
        ("0:1,0:2", "twice"),
        ("0:1:2", "no number"),
        (":1", "no number"),
        ("0:1," * CURSOR_CHARACTERS_MAX, "characters"),
    ],
)
def test_what_is_no_cursor_is_refused_with_what_was_expected(text: str, says: str) -> None:
    """The message names what was found and what a cursor looks like."""
    with pytest.raises(WrongCursor, match=says) as caught:
        parse_cursor(text, "telemetry.gpu", 1)
    assert "Expected 120, or 0:120,1:98" in str(caught.value)


def test_a_number_alone_names_no_partition_where_there_are_several() -> None:
    """Guessing would leave the others out, or repeat them."""
    with pytest.raises(WrongCursor, match="has 12 partitions"):
        parse_cursor("120", "telemetry.gpu", 12)
