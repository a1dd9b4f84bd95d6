"""What a spool tells of itself: rows of ``event/1``, under the source ``NODE/spool``."""

from collections.abc import Iterator
from contextlib import contextmanager

from collectors.framing import event_batch
from collectors.source import EventRow
from collectors.spool import Depth
from telemetry_bus.frames import Frame, FrameMaker, Run
from telemetry_bus.schemas import EventKind


class SpoolEvents:
    """Makes the frames and counts them. One is made at a time: a number that was not sent is given to the next."""

    def __init__(self, node: str, region: str | None, simulated: bool) -> None:
        self._node, self._region, self._simulated = node, region, simulated
        self._maker = FrameMaker(f"{node}/spool")

    def depth(self, depth: Depth, away: bool, now: float) -> Frame:
        """What waits, and whether the far end is away."""
        detail = {"frames": depth.frames, "bytes": depth.bytes, "oldest_seconds": depth.oldest_seconds, "away": away}
        message = f"{self._node}: {depth.frames} frames wait in the spool"
        return self._frame(EventRow(EventKind.SPOOL, self._node, message, self._simulated, detail=detail), now)

    def dropped(self, rows: int, simulated: bool, now: float) -> Frame:
        """How many rows the spool's bounds have taken."""
        detail = {"rows": rows, "source": "spool"}
        message = f"{self._node}: {rows} rows were dropped from the spool"
        return self._frame(EventRow(EventKind.ROWS_DROPPED, self._node, message, simulated, detail=detail), now)

    @contextmanager
    def unless_lost(self, frame: Frame) -> Iterator[Frame]:
        """If the block fails, the frame does not count."""
        try:
            yield frame
        except BaseException:
            self._maker.seq = frame.manifest[0].seq
            raise

    def _frame(self, event: EventRow, now: float) -> Frame:
        run = Run(self._maker.source, self._maker.boot, self._maker.seq, 1, now)
        self._maker.seq += 1
        return Frame("event/1", event_batch([event], now, self._region), (run,))
