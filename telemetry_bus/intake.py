"""From records to frames that can be trusted: the one door through which every reader takes the bus.

Pure: it is given records, which carry the bus's time. For each it decodes and validates, drops what was here before,
takes off the offset of a wrong clock, and refuses rows that are still outside their window. It never raises for what
somebody else has sent: what is refused comes out beside the frame, with its reason.
"""

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from telemetry_bus.bus import Record
from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.frames import Frame, decode, micros_of, select_runs
from telemetry_bus.ledger import SOURCES_MAX, SourceLedger
from telemetry_bus.topics import TELEMETRY, TOPIC_SCHEMAS, Topic

CLOCK_TOLERANCE_SECONDS = 5.0
"""Between a maker's clock at sending and the bus's clock at appending lie the way and the wait for a commit. Up to five
seconds are taken for that; more is a wrong clock."""
FUTURE_SECONDS_MAX = 10.0
"""A row may be this far ahead of the bus after its clock's offset was taken off."""
LATE_SECONDS_MAX = 900.0
"""A live row may be this old: the SDK's queue and a collector's retries together hold minutes, not hours."""
OFFSETS_MAX = 65_536
"""Sources whose clock offset is remembered; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was refused: a whole payload, or some rows of it."""

    record: Record
    reason: FrameFault
    message: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one record: the fresh rows (``None`` if there are none), and what was refused."""

    record: Record
    frame: Frame | None
    refusals: tuple[Refusal, ...] = ()


class Intake:
    """Takes records of any topics in order. It remembers sources (see :class:`SourceLedger`) and clock offsets."""

    def __init__(self) -> None:
        self.ledger = SourceLedger()
        self.refused: Counter[FrameFault] = Counter(dict.fromkeys(FrameFault, 0))
        self.clock_offsets: dict[str, float] = {}
        """Seconds by which a source's clock is ahead of the bus's, for those beyond the tolerance."""
        self.simulated: dict[str, None] = {}
        """Sources whose newest rows are simulated, oldest first."""

    def take(self, record: Record) -> Taken:
        """The fresh, corrected rows of ``record`` and what was refused of it."""
        try:
            frame = decode(record.payload, TOPIC_SCHEMAS[record.topic])
        except FrameError as error:
            self.refused[error.reason] += 1
            return Taken(record, None, (Refusal(record, error.reason, str(error)),))
        frame = select_runs(frame, [self.ledger.fresh(run, record.time) for run in frame.manifest])
        if not frame.rows:
            return Taken(record, None)
        if record.topic not in TELEMETRY:
            return Taken(record, frame)
        if "simulated" in frame.batch.schema.names:
            self._note_simulated(frame)
        return self._in_time(record, frame)

    def _note_simulated(self, frame: Frame) -> None:
        rows = frame.numbers("simulated")[0].astype(bool)
        if not self.simulated and not rows.any():
            return
        runs = [run for run in frame.manifest if run.rows]
        for run, simulated in zip(runs, np.logical_or.reduceat(rows, _starts(frame)).tolist(), strict=True):
            if not simulated:
                self.simulated.pop(run.source, None)
                continue
            self.simulated[run.source] = None
            if len(self.simulated) > SOURCES_MAX:
                del self.simulated[next(iter(self.simulated))]

    def _in_time(self, record: Record, frame: Frame) -> Taken:
        times = frame.times() - np.repeat(self._offsets(record, frame), [run.rows for run in frame.manifest])
        ahead = times - record.time
        kept = (ahead <= FUTURE_SECONDS_MAX) & (ahead >= -LATE_SECONDS_MAX)
        if kept.all():
            return Taken(record, _with_times(frame, times))
        worst = ahead[~kept][np.argmax(np.abs(ahead[~kept]))]
        message = (
            f"{int((~kept).sum())} of {frame.rows} rows are out of their window once the clock's offset is taken off: "
            f"the worst is {worst:+.1f} s from the bus's clock, "
            f"allowed are -{LATE_SECONDS_MAX:.0f} s to +{FUTURE_SECONDS_MAX:.0f} s"
        )
        self.refused[FrameFault.OUT_OF_WINDOW] += 1
        refusal = Refusal(record, FrameFault.OUT_OF_WINDOW, message)
        left = _with_times(_filter_rows(frame, kept), times[kept]) if kept.any() else None
        return Taken(record, left, (refusal,))

    def _offsets(self, record: Record, frame: Frame) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        measured = np.array([run.sent - record.time for run in frame.manifest])
        wrong = np.abs(measured) > CLOCK_TOLERANCE_SECONDS
        for run, offset, is_wrong in zip(frame.manifest, measured.tolist(), wrong.tolist(), strict=True):
            if is_wrong:
                self.clock_offsets[run.source] = offset
                if len(self.clock_offsets) > OFFSETS_MAX:
                    del self.clock_offsets[next(iter(self.clock_offsets))]
            else:
                self.clock_offsets.pop(run.source, None)
        return np.where(wrong, measured, 0.0)


def _with_times(frame: Frame, times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Frame:
    index = frame.batch.schema.get_field_index("time")
    batch = frame.batch.set_column(index, frame.batch.schema.field(index), micros_of(times))
    return Frame(frame.schema_id, batch, frame.manifest)


def _filter_rows(frame: Frame, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Frame:
    """Only the kept rows; runs shrink with them."""
    left = deque(np.add.reduceat(kept, _starts(frame)).tolist() if frame.manifest else [])
    runs = []
    for run in frame.manifest:
        rows = int(left.popleft()) if run.rows else 0
        runs.append(type(run)(run.source, run.boot, run.seq, rows, run.sent))
    return Frame(frame.schema_id, frame.batch.filter(pa.array(kept)), tuple(runs))


def _starts(frame: Frame) -> list[int]:
    starts, at = [], 0
    for run in frame.manifest:
        if run.rows:
            starts.append(at)
        at += run.rows
    return starts


def topic_of(schema_id: str) -> Topic:
    """The live topic that carries ``schema_id``."""
    return next(
        topic for topic, schemas in TOPIC_SCHEMAS.items() if schema_id in schemas and topic is not Topic.BACKLOG
    )
