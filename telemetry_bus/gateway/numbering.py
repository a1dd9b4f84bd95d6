"""The manifest of what comes in without one: a run for each source, numbered by this process.

Loss is measured here as everywhere. A number whose frame did not become durable is not given to other rows (it may have
been written after all, and those rows would pass for a repetition); the source's next frame carries it as a run of
no rows, so that no reader waits for it.
"""

import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from telemetry_bus.frames import RUNS_MAX, Frame, Run

SOURCES_MAX = 65_536
"""A Prometheus of 37,500 nodes, and as many ranks again; 40 MiB. A source that was forgotten comes back as another
boot, from 0: nothing is missed and nothing taken for a repetition."""
UNUSED_MAX = 64
"""Numbers of a source that wait to be carried as empty runs; beyond them the source goes on as another boot, which no
reader holds against the old one's last numbers."""


@dataclass(slots=True)
class _Count:
    boot: uuid.UUID
    following: int = 0
    unused: list[int] = field(default_factory=list)


class Numbering:
    """Makes frames of rows and numbers their runs. ``new_boot`` makes a UUID."""

    def __init__(self, new_boot: Callable[[], uuid.UUID] = uuid.uuid4) -> None:
        self._new_boot = new_boot
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    def frame(self, schema_id: str, batch: pa.RecordBatch, runs: Sequence[tuple[str, int, float]]) -> Frame:
        """A frame of ``batch`` whose runs are ``(source, rows, sent)``, in the order of its rows.

        A source whose empty runs have no place in the frame goes on as another boot.
        """
        manifest: list[Run] = []
        room = RUNS_MAX - len(runs)
        for source, rows, sent in runs:
            count = self._count(source)
            if len(count.unused) > room:
                del self._counts[source]
                count = self._count(source)
            room -= len(count.unused)
            manifest += [Run(source, count.boot, seq, 0, sent) for seq in sorted(count.unused)]
            count.unused.clear()
            manifest.append(Run(source, count.boot, count.following, rows, sent))
            count.following += 1
        return Frame(schema_id, batch, tuple(manifest))

    def unused(self, frame: Frame) -> None:
        """Say that ``frame`` did not become durable as far as anybody knows."""
        for run in frame.manifest:
            count = self._counts.get(run.source)
            if count is None or count.boot != run.boot:
                continue
            count.unused.append(run.seq)
            if len(count.unused) > UNUSED_MAX:
                del self._counts[run.source]

    def _count(self, source: str) -> _Count:
        count = self._counts.get(source)
        if count is None:
            count = self._counts[source] = _Count(self._new_boot())
            if len(self._counts) > SOURCES_MAX:
                self._counts.popitem(last=False)
        self._counts.move_to_end(source)
        return count
