"""Rows that came in over HTTP, cut into what is numbered and accepted as one frame each. Pure.

A piece has one partition key (a node or a job) and one schema. What is too old for the live topic goes to the backlog,
where it fills curves and pages nobody: a Prometheus that was cut off sends its last hours when it is back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from telemetry_bus.frames import Array, Frame
from telemetry_bus.gateway.numbering import Numbering
from telemetry_bus.intake import LATE_SECONDS_MAX, topic_of
from telemetry_bus.sources import key_of
from telemetry_bus.topics import Topic

LIVE_SECONDS_MAX = LATE_SECONDS_MAX - 300.0
"""A reader refuses a live row that is older than 15 minutes; five of them are for the way and a wait for the bus."""
PIECE_ROWS_MAX = 4_096
"""With every text at its longest (a job's row: 3 KiB) a piece has 12 MiB, within the 16 MiB of a frame."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one schema for one topic, whose runs are ``(source, rows, sent)`` in the order of the rows."""

    topic: Topic
    schema_id: str
    batch: pa.RecordBatch
    runs: tuple[tuple[str, int, float], ...]

    @property
    def key(self) -> str:
        """The partition key."""
        return key_of(self.runs[0][0])

    def numbered(self, numbering: Numbering) -> Frame:
        """The frame of these rows."""
        return numbering.frame(self.schema_id, self.batch, self.runs)


def pieces_of(
    schema_id: str, batch: pa.RecordBatch, seconds: Array, owner: Array, sources: Sequence[str], now: float
) -> Iterator[Piece]:
    """Cut ``batch``, whose row ``i`` is of ``sources[owner[i]]`` at ``seconds[i]``; a source's rows keep their order.

    ``sources`` are sorted, so that those of one key are neighbours.
    """
    late = seconds < now - LIVE_SECONDS_MAX
    for topic, wanted in ((topic_of(schema_id), ~late), (Topic.BACKLOG, late)):
        rows = np.flatnonzero(wanted)
        if not rows.size:
            continue
        rows = rows[np.argsort(owner[rows], kind="stable")]
        chosen = batch if _all_in_order(rows, batch.num_rows) else batch.take(pa.array(rows, pa.int64()))
        yield from _cut(topic, schema_id, chosen, seconds[rows], [sources[i] for i in owner[rows].tolist()], now)


def _all_in_order(rows: Array, length: int) -> bool:
    return rows.size == length and bool((rows == np.arange(length)).all())


def _cut(
    topic: Topic, schema_id: str, batch: pa.RecordBatch, seconds: Array, sources: list[str], now: float
) -> Iterator[Piece]:
    start = 0
    runs: list[tuple[str, int, float]] = []
    for first, end in _spans(sources):
        in_piece = sum(rows for _, rows, _ in runs)
        if runs and (key_of(runs[0][0]) != key_of(sources[first]) or in_piece + end - first > PIECE_ROWS_MAX):
            yield Piece(topic, schema_id, batch.slice(start, in_piece), tuple(runs))
            start, runs = first, []
        runs.append((sources[first], end - first, max(now, float(seconds[first:end].max()))))
    if runs:
        yield Piece(topic, schema_id, batch.slice(start), tuple(runs))


def _spans(sources: list[str]) -> Iterator[tuple[int, int]]:
    """Where a source's rows begin and end, at most :data:`PIECE_ROWS_MAX` of them."""
    start = 0
    for at in range(1, len(sources) + 1):
        if at == len(sources) or sources[at] != sources[start] or at - start == PIECE_ROWS_MAX:
            yield start, at
            start = at
