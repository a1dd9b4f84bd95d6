"""Offline runs of Weights & Biases: ``run-*.wandb``, a log of LevelDB's format with a ``Record`` in each entry.

Sources: LevelDB's ``doc/log_format.md`` (blocks of 32 KiB; records whole, first, middle, last), W&B's
``wandb_internal.proto`` (``Record.history``, ``HistoryRecord.item``: key, nested key, value as JSON).
"""

import json
import struct
from collections.abc import Iterator

from app.follow.formats.protobuf import fields
from app.follow.step import Step

FILE_HEAD = b":W&B"
_FILE_HEAD_BYTES = 7
BLOCK = 32 * 1024
_HEAD = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
ENTRY_BYTES_MAX = 64 << 20
"""An entry may hold a table, which is passed over; beyond this it is no entry, and is left out."""


class Wandb:
    """Takes bytes as they come."""

    name = "wandb"

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0
        """Where the buffer begins in the file."""
        self._entry = bytearray()
        self._counted = 0
        self.unreadable = 0
        self.given_up = False

    def feed(self, data: bytes) -> Iterator[Step]:
        """The steps of the entries that are complete."""
        self._bytes += data
        if self._at == 0:
            if len(self._bytes) < _FILE_HEAD_BYTES:
                return
            self.given_up = self.given_up or not self._bytes.startswith(FILE_HEAD)
            self._drop(_FILE_HEAD_BYTES)
        while not self.given_up and (entry := self._next()) is not None:
            try:
                yield from self._record(entry)
            except ValueError:
                self.unreadable += 1
        if self.given_up:
            self._bytes.clear()

    def rest(self) -> Iterator[Step]:
        """Nothing is held back."""
        return iter(())

    def _drop(self, count: int) -> None:
        del self._bytes[:count]
        self._at += count

    def _next(self) -> bytes | None:
        """The next entry that is whole; ``None`` where more must come."""
        while True:
            left = BLOCK - self._at % BLOCK
            if left < _HEAD.size:
                if len(self._bytes) < left:
                    return None
                self._drop(left)  # a block's last bytes hold no head
            if len(self._bytes) < _HEAD.size:
                return None
            _, length, kind = _HEAD.unpack_from(self._bytes)
            if length == kind == 0 or kind > _LAST or _HEAD.size + length > BLOCK - self._at % BLOCK:
                self.given_up = True
                return None
            if len(self._bytes) < _HEAD.size + length:
                return None
            piece = bytes(self._bytes[_HEAD.size : _HEAD.size + length])
            self._drop(_HEAD.size + length)
            if kind in (_FULL, _FIRST):
                self._entry.clear()
            if len(self._entry) + len(piece) <= ENTRY_BYTES_MAX:
                self._entry += piece
            if kind in (_FULL, _LAST):
                return bytes(self._entry)

    def _record(self, entry: bytes) -> Iterator[Step]:
        for field, content in fields(entry):
            if field == 2 and isinstance(content, bytes):
                values = dict(_item(item) for number, item in fields(content) if number == 1)
                number = values.pop("_step", self._counted)
                step = Step(number if isinstance(number, int) else self._counted)
                self._counted = step.number + 1
                for name, value in values.items():
                    if name and not name.startswith("_"):
                        step.add(name, value)
                if step:
                    yield step


def _item(item: bytes) -> tuple[str, object]:
    names: list[str] = []
    value: object = None
    for field, content in fields(item):
        if field in (1, 2):
            names.append(content.decode("utf-8", "replace"))
        elif field == 16 and len(content) <= 64:  # a number; a text or a table is longer
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                value = None
    return "/".join(name for name in names if name), value
