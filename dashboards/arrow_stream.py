"""A topic as one valid Arrow IPC stream: the schema once, then a batch for each frame."""

import io
from collections.abc import AsyncGenerator

import pyarrow as pa

from telemetry_bus.bus import Record
from telemetry_bus.errors import FrameError
from telemetry_bus.fanout import FanOutReader, Skipped
from telemetry_bus.frames import decode
from telemetry_bus.schemas import SCHEMAS

MEDIA_TYPE = "application/vnd.apache.arrow.stream"


class _Sink(io.RawIOBase):
    """Takes what the writer writes and hands it over; its position only grows, as the writer's alignment needs."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: object, /) -> int:
        view = memoryview(data)  # type: ignore[arg-type]  # pyarrow gives bytes or a buffer
        self._held += view
        self._position += view.nbytes
        return view.nbytes

    def take(self) -> bytes:
        """What was written since the last time."""
        held = bytes(self._held)
        self._held.clear()
        return held


async def arrow_stream(
    reader: FanOutReader, schema_id: str, *, until: int | None, limit: int | None
) -> AsyncGenerator[bytes, None]:
    """The frames of ``schema_id`` that ``reader`` (not yet entered) has, as an Arrow IPC stream; it closes the reader.

    Each batch's custom metadata carries ``topic``, ``offset``, ``next_offset``, ``time`` (the bus's clock, UTC seconds)
    and, where there is something to tell, ``skipped`` (records before it that this reader was too slow for) and
    ``refused`` (frames before it that could not be read). It ends before the record numbered ``until``, or
    after ``limit`` records, or, with neither, never.
    """
    sink = _Sink()
    told = {"skipped": 0, "refused": 0}
    records = 0
    with reader, pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), SCHEMAS[schema_id]) as writer:
        yield sink.take()
        while (until is None or reader.position < until) and (limit is None or records < limit):
            item = await anext(reader, None)
            if item is None:
                break
            if isinstance(item, Skipped):
                told["skipped"] += item.count
                continue
            records += 1
            batch = _batch(item, schema_id, told)
            if batch is not None:
                writer.write_batch(batch, custom_metadata=_metadata(item, told))
                told = dict.fromkeys(told, 0)
                yield sink.take()
    yield sink.take()


def _batch(record: Record, schema_id: str, told: dict[str, int]) -> pa.RecordBatch | None:
    try:
        frame = decode(record.payload)
    except FrameError:
        told["refused"] += 1
        return None
    return frame.batch if frame.schema_id == schema_id else None


def _metadata(record: Record, told: dict[str, int]) -> dict[bytes, bytes]:
    said = {name: str(count) for name, count in told.items() if count > 0}
    offsets = {"offset": str(record.offset), "next_offset": str(record.offset + 1), "time": f"{record.time:.6f}"}
    metadata = {"topic": str(record.topic), **offsets, **said}
    return {name.encode(): value.encode() for name, value in metadata.items()}
