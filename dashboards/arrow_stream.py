"""A topic as one valid Arrow IPC stream: the schema once, then a batch for each frame.

A batch's message is made once, whoever asks: a stream is its schema's message and then messages that stand alone, so
that all readers can be sent the very same bytes.
"""

import io
from collections import OrderedDict
from collections.abc import AsyncGenerator

import pyarrow as pa

from telemetry_bus.bus import Record
from telemetry_bus.cursor import Cursor, cursor_text
from telemetry_bus.errors import FrameError
from telemetry_bus.fanout import FanOutReader
from telemetry_bus.frames import batch_of, decode
from telemetry_bus.ring import Skipped
from telemetry_bus.schemas import SCHEMAS
from telemetry_bus.topics import Topic

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
MESSAGES_BYTES_MAX = 16 * 1024 * 1024
"""Messages that are kept for the next reader: who follows live asks for the newest within the second, and a second of
300,000 GPUs is 65 MiB in messages of 0.1 MiB. What has gone is made again."""
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

_Key = tuple[Topic, int, str, int]


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


class _Encoder:
    """Messages of one schema. ``head`` is the message that begins a stream."""

    def __init__(self, schema_id: str) -> None:
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, mode="w"), SCHEMAS[schema_id])
        self.head: bytes = SCHEMAS[schema_id].serialize().to_pybytes()
        self._writer.write_batch(batch_of(schema_id, {}))  # Its own schema goes out before its first batch.
        self._sink.take()

    def message(self, batch: pa.RecordBatch, told: dict[str, str]) -> bytes:
        """One batch with its custom metadata: a multiple of eight bytes, as every message of a stream is."""
        metadata = {name.encode(): value.encode() for name, value in told.items()}
        self._writer.write_batch(batch, custom_metadata=metadata)
        return self._sink.take()


class ArrowMessages:
    """The messages of one `serve` process, each made once: ``made`` counts them, ``sent`` what readers were given."""

    def __init__(self, bytes_max: int = MESSAGES_BYTES_MAX) -> None:
        self.made = 0
        self.sent = 0
        self.bytes_held = 0
        self._bytes_max = bytes_max
        self._encoders: dict[str, _Encoder] = {}
        self._held: OrderedDict[_Key, bytes] = OrderedDict()

    async def stream(
        self, reader: FanOutReader, topic: Topic, schema_id: str, *, until: int | None, limit: int | None
    ) -> AsyncGenerator[bytes, None]:
        """The frames of ``schema_id`` that ``reader`` (not yet entered) has, as an Arrow IPC stream; it closes it.

        Each batch's custom metadata carries ``topic``, ``partition``, ``offset``, ``next_offset``, ``cursor`` (where
        the next answer goes on in all partitions), ``time`` (the bus's clock, UTC seconds) and, where there is
        something to tell, ``skipped`` (records before it that this reader was too slow for) and ``refused`` (frames
        before it that could not be read). It ends before the record numbered ``until``, or after ``limit`` records,
        or, with neither, never.
        """
        skipped = refused = records = 0
        with reader:
            yield self._encoder(schema_id).head
            while (until is None or reader.position < until) and (limit is None or records < limit):
                item = await anext(reader, None)
                if item is None:
                    break
                if isinstance(item, Skipped):
                    skipped += item.count
                    continue
                records += 1
                message = self._message(reader, item, topic, schema_id, skipped, refused)
                if message is None:
                    refused += 1
                elif message:
                    skipped = refused = 0
                    self.sent += 1
                    yield message
        yield END_OF_STREAM

    def _message(
        self, reader: FanOutReader, record: Record, topic: Topic, schema_id: str, skipped: int, refused: int
    ) -> bytes | None:
        """The message of ``record``, empty for one of another schema, ``None`` for what cannot be read."""
        # What is told to one reader alone is made for him alone; the rest is the same for all who stand here.
        if skipped or not reader.in_step:
            return self._made(record, schema_id, reader.cursor, skipped, refused)
        key = (topic, reader.position, schema_id, refused)
        held = self._held.get(key)
        if held is None:
            held = self._made(record, schema_id, reader.cursor, 0, refused)
            if held is not None:
                self._keep(key, held)
        return held

    def _made(self, record: Record, schema_id: str, cursor: Cursor, skipped: int, refused: int) -> bytes | None:
        try:
            frame = decode(record.payload)
        except FrameError:
            return None
        if frame.schema_id != schema_id:
            return b""
        self.made += 1
        told = {
            "topic": str(record.topic),
            "partition": str(record.partition),
            "offset": str(record.offset),
            "next_offset": str(record.offset + 1),
            "cursor": cursor_text(cursor),
            "time": f"{record.time:.6f}",
        }
        told |= {name: str(count) for name, count in (("skipped", skipped), ("refused", refused)) if count}
        return self._encoder(schema_id).message(frame.batch, told)

    def _keep(self, key: _Key, message: bytes) -> None:
        self._held[key] = message
        self.bytes_held += len(message)
        while self.bytes_held > self._bytes_max and len(self._held) > 1:
            self.bytes_held -= len(self._held.popitem(last=False)[1])

    def _encoder(self, schema_id: str) -> _Encoder:
        if schema_id not in self._encoders:
            self._encoders[schema_id] = _Encoder(schema_id)
        return self._encoders[schema_id]
