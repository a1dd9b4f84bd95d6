"""TensorBoard's event files: records of TensorFlow's ``TFRecord``, each an ``Event`` with a step and a ``Summary``.

Sources: ``tensorflow/core/lib/io/record_writer.h`` (length, its checksum, data, its checksum), ``event.proto``,
``summary.proto``, ``tensor.proto``. Checksums are not compared: what cannot be read as a message is counted and left.
"""

import struct
from collections.abc import Iterator
from typing import Any

from app.follow.formats.protobuf import double_of, fields, float_of
from app.follow.step import Step

RECORD_BYTES_MAX = 64 << 20
"""A record may be a picture, which is passed over; beyond this it is no record, and the file is given up."""
_HEAD, _TAIL = struct.Struct("<QI"), 4
_FLOAT, _DOUBLE = 1, 2


class TensorBoard:
    """Takes bytes as they come. A job writes one tag a record: those of one step are put together."""

    name = "tensorboard"

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._step: Step | None = None
        self.unreadable = 0
        self.given_up = False

    def feed(self, data: bytes) -> Iterator[Step]:
        """The steps that are complete: those before the newest."""
        if self.given_up:
            return
        self._bytes += data
        while len(self._bytes) >= _HEAD.size:
            length, _ = _HEAD.unpack_from(self._bytes)
            if length > RECORD_BYTES_MAX:
                self.given_up = True
                self._bytes.clear()
                return
            end = _HEAD.size + length + _TAIL
            if len(self._bytes) < end:
                return
            record = bytes(self._bytes[_HEAD.size : _HEAD.size + length])
            del self._bytes[:end]
            try:
                yield from self._event(record)
            except ValueError:
                self.unreadable += 1

    def rest(self) -> Iterator[Step]:
        """The newest step, once nothing more comes for now."""
        if self._step:
            yield self._step
        self._step = None

    def _event(self, record: bytes) -> Iterator[Step]:
        number, summary = 0, b""
        for field, content in fields(record):
            if field == 2 and isinstance(content, int):
                number = content - (1 << 64) if content >> 63 else content
            elif field == 5 and isinstance(content, bytes):
                summary = content
        if not summary:
            return
        if self._step is None or self._step.number != number:
            yield from self.rest()
            self._step = Step(number)
        for field, content in fields(summary):
            if field == 1:
                self._add(self._step, content)

    @staticmethod
    def _add(step: Step, content: bytes) -> None:
        tag, value = "", None
        for field, part in fields(content):
            if field == 1:
                tag = part.decode("utf-8", "replace")
            elif field == 2:
                value = float_of(part)
            elif field == 8:
                value = _scalar(part)
        if tag and value is not None:
            step.add(tag, value)


def _scalar(tensor: bytes) -> float | None:
    """The number of a ``TensorProto`` that holds one float or double."""
    kind, found = 0, dict[int, Any]()
    for field, content in fields(tensor):
        if field == 1:
            kind = content
        found[field] = content
    raw = found.get(4, b"")
    if kind == _FLOAT and (len(raw) == 4 or isinstance(found.get(5), bytes | int)):
        return float(struct.unpack("<f", raw)[0]) if len(raw) == 4 else _one(found[5], "<f", float_of)
    if kind == _DOUBLE and (len(raw) == 8 or isinstance(found.get(6), bytes | int)):
        return float(struct.unpack("<d", raw)[0]) if len(raw) == 8 else _one(found[6], "<d", double_of)
    return None


def _one(content: Any, packed: str, of_bits: Any) -> float | None:
    """A repeated field with one element, packed or not."""
    if isinstance(content, int):
        return float(of_bits(content))
    return float(struct.unpack(packed, content)[0]) if len(content) == struct.calcsize(packed) else None
