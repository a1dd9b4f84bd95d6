"""Protobuf messages declared in Python, read and written by Google's runtime: for the few that no package carries."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
DOUBLE, INT64, INT32, UINT32 = _Field.TYPE_DOUBLE, _Field.TYPE_INT64, _Field.TYPE_INT32, _Field.TYPE_UINT32
STRING, BYTES = _Field.TYPE_STRING, _Field.TYPE_BYTES
ONE, MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED

Declared = tuple[str, int, int | str, int]
"""A field: its name, its number on the wire, its type (or the message that it is), and whether there are many."""


def message_classes(package: str, messages: Mapping[str, Sequence[Declared]]) -> dict[str, Any]:
    """The classes of ``messages`` (proto3), by name. They live in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message, fields in messages.items():
        declared = file.message_type.add(name=message)
        for name, number, kind, label in fields:
            entry: Any = declared.field.add(name=name, number=number)
            entry.label = label
            if isinstance(kind, str):
                entry.type, entry.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                entry.type = kind
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {message: message_factory.GetMessageClass(find(f"{package}.{message}")) for message in messages}
