"""From readings to frames: one run of the manifest for each node and frame, counted per source name.

A real node has one run in a frame. A simulated fleet has many: its frames look as a gateway's do after merging.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa

from collectors.source import EventRow, GpuRows, LinkRows
from telemetry_bus import Frame, Run
from telemetry_bus.frames import batch_of
from telemetry_bus.json_text import dumps

_T = TypeVar("_T")

NODES_PER_FRAME_MAX = 256
"""As a gateway merges: 2,048 GPUs of 129 metrics are at most 1.7 MiB, far below what a reader takes (16 MiB)."""
EVENTS_PER_FRAME_MAX = 1_024
"""An inventory of 8 GPUs is about 1 KiB: a MiB a frame."""


class Framer:
    """Makes frames of readings. One ``boot`` for its life, one sequence for each source name."""

    def __init__(self, region: str | None, boot: uuid.UUID | None = None) -> None:
        self.region = region
        self.boot = boot or uuid.uuid4()
        self._next: Counter[str] = Counter()

    def gpu_frames(self, rows: GpuRows, now: float) -> Iterator[Frame]:
        """Frames of ``gpu/1`` of at most :data:`NODES_PER_FRAME_MAX` nodes each, sources ``NODE/gpu``."""
        return self._frames("gpu/1", "gpu", rows, now)

    def link_frames(self, rows: LinkRows, now: float) -> Iterator[Frame]:
        """Frames of ``link/1``, sources ``NODE/links``."""
        return self._frames("link/1", "links", rows, now)

    def _frames(self, schema_id: str, stream: str, rows: GpuRows | LinkRows, now: float) -> Iterator[Frame]:
        batch = batch_of(schema_id, rows.columns(now, self.region))
        start = 0
        for nodes in _pieces(rows.nodes, NODES_PER_FRAME_MAX):
            runs = tuple(self._run(f"{node}/{stream}", count, now) for node, count in nodes)
            length = sum(count for _, count in nodes)
            yield Frame(schema_id, batch.slice(start, length), runs)
            start += length

    def event_frames(self, events: Sequence[EventRow], now: float) -> Iterator[Frame]:
        """Frames of ``event/1``, sources ``NODE/gpu-events``; events of one node keep their order."""
        ordered = sorted(events, key=lambda event: event.node)
        for piece in _pieces(ordered, EVENTS_PER_FRAME_MAX):
            counts = Counter(event.node for event in piece)
            runs = tuple(self._run(f"{node}/gpu-events", count, now) for node, count in counts.items())
            yield Frame("event/1", event_batch(piece, now, self.region), runs)

    def _run(self, source: str, rows: int, now: float) -> Run:
        seq = self._next[source]
        self._next[source] = seq + 1
        return Run(source, self.boot, seq, rows, now)


def event_batch(events: Sequence[EventRow], now: float, region: str | None) -> pa.RecordBatch:
    """Rows of ``event/1``."""
    return batch_of(
        "event/1",
        {
            "time": np.array([now if event.time is None else event.time for event in events], dtype=np.float64),
            "region": [region] * len(events),
            "kind": [event.kind.value for event in events],
            "node": [event.node for event in events],
            "gpu": [event.gpu for event in events],
            "uuid": [event.uuid for event in events],
            "code": [event.code for event in events],
            "message": [event.message for event in events],
            "detail": [dumps(dict(event.detail)) for event in events],
            "simulated": [event.simulated for event in events],
        },
    )


def _pieces(things: Sequence[_T], size: int) -> Iterator[list[_T]]:
    left = iter(things)
    while piece := list(islice(left, size)):
        yield piece
