"""Fields of Protocol Buffers messages whose schema is not at hand: by number, as the library reads unknown ones."""

import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

_GROUP = 3


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each field: whole numbers for varints and fixed widths, bytes for texts and messages.

    Raises ``ValueError`` for what is no message.
    """
    try:
        message = Empty.FromString(data)
    except DecodeError as error:
        raise ValueError(f"expected a message, found {error}") from error
    for field in UnknownFieldSet(message):  # type: ignore[attr-defined]  # its stub leaves out that it is iterable
        if field.wire_type != _GROUP:
            yield field.field_number, field.data


def float_of(bits: int) -> float:
    """The float32 whose bits a fixed field of 32 has."""
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(value)


def double_of(bits: int) -> float:
    """The float64 whose bits a fixed field of 64 has."""
    (value,) = struct.unpack("<d", struct.pack("<Q", bits))
    return float(value)
