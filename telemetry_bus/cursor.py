"""A cursor: the next offset of each partition of a topic, written down so that a reader can go on there.

``0:120,1:98`` names two partitions; where a topic has one partition, a plain number means its offset.
"""

from collections.abc import Mapping

from telemetry_bus.errors import BusError

Cursor = Mapping[int, int]
"""The next offset, by partition. A partition that is not named begins at the oldest that is held."""

OFFSET_MAX = (1 << 63) - 1
"""Offsets are int64 on every bus."""
CURSOR_CHARACTERS_MAX = 32_768
"""1,000 partitions of 26 letters each; an HTTP request line is bounded at twice that."""


class WrongCursor(BusError):
    """A text that is no cursor, or one that does not fit its topic."""

    def __init__(self, found: str, what: str) -> None:
        shown = found if len(found) <= 64 else f"{found[:64]}..."
        super().__init__(f"the offset {shown!r} cannot be read: {what}. Expected 120, or 0:120,1:98 by partition.")


def parse_cursor(text: str, topic: str, partitions: int) -> dict[int, int]:
    """The cursor that ``text`` stands for, in a topic that has so many partitions. Raises :class:`WrongCursor`."""
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise WrongCursor(text, f"it has more than {CURSOR_CHARACTERS_MAX} characters")
    if ":" not in text:
        if partitions > 1:
            raise WrongCursor(text, f"{topic} has {partitions} partitions, and a number alone names none")
        return {0: _number(text, text)}
    cursor: dict[int, int] = {}
    for part in text.split(","):
        partition, colon, offset = part.partition(":")
        if not colon:
            raise WrongCursor(text, f"{part!r} has no partition")
        at = _number(partition, text)
        if at in cursor:
            raise WrongCursor(text, f"partition {at} is there twice")
        cursor[at] = _number(offset, text)
    return cursor


def cursor_text(cursor: Cursor) -> str:
    """The shortest text for ``cursor``: a plain number for partition 0 alone."""
    if cursor.keys() == {0}:
        return str(cursor[0])
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(cursor.items()))


def _number(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19 and int(digits) <= OFFSET_MAX):
        raise WrongCursor(text, f"{digits[:32]!r} is no number from 0 to 2^63 - 1")
    return int(digits)
