"""From records to frames that can be trusted: the one door through which every reader takes the bus.

Pure: it is given records, which carry the bus's time. For each it decodes and validates, drops what was here before,
takes off the offset of a wrong clock, and refuses rows that are still outside their window. It never raises for what
somebody else has sent: what is refused comes out beside the frame, with its reason.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry_bus.bus import Record
from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.frames import Frame, decode, micros_of, select_runs
from telemetry_bus.ledger import SOURCES_MAX, SourceLedger
from telemetry_bus.manifest import Array
from telemetry_bus.topics import TELEMETRY, TOPIC_SCHEMAS, Topic

CLOCK_TOLERANCE_SECONDS = 5.0
"""Between a maker's clock at sending and the bus's clock at appending lie the way and the wait for a commit. Up to five
seconds are taken for that; more is a wrong clock."""
FUTURE_SECONDS_MAX = 10.0
"""A row may be this far ahead of the bus after its clock's offset was taken off."""
LATE_SECONDS_MAX = 900.0
"""A live row may be this old: the SDK's queue and a collector's retries together hold minutes, not hours."""
BACKLOG_SECONDS_MAX = 48 * 3600.0
"""What an outage has held back: a spool holds a day at most, and may wait for its node as long again."""


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
    """Takes records of any topics in order. It remembers sources (see :class:`SourceLedger`), their clocks and their
    regions."""

    def __init__(self, sources_max: int = SOURCES_MAX) -> None:
        self.ledger = SourceLedger(sources_max)
        self.refused: Counter[FrameFault] = Counter(dict.fromkeys(FrameFault, 0))
        self.clock_offsets: Mapping[str, float] = self.ledger.clock_offsets
        """Seconds by which a source's clock is ahead of the bus's, for those beyond the tolerance."""
        self.simulated = self.ledger.simulated
        """The sources whose newest rows are simulated."""
        self.regions: Mapping[str, float] = self.ledger.sources.region_seen
        """The bus's time (UTC seconds) of each region's newest live frame."""

    def take(self, record: Record) -> Taken:
        """The fresh, corrected rows of ``record`` and what was refused of it."""
        try:
            frame = decode(record.payload, TOPIC_SCHEMAS[record.topic])
        except FrameError as error:
            self.refused[error.reason] += 1
            return Taken(record, None, (Refusal(record, error.reason, str(error)),))
        placed = self.ledger.take(frame.manifest, record.time)
        frame = select_runs(frame, placed.fresh)
        if not frame.rows:
            return Taken(record, None)
        if record.topic not in TELEMETRY and record.topic is not Topic.BACKLOG:
            return Taken(record, frame)
        sources = placed.sources[placed.fresh]
        self._note(frame, sources, record)
        return self._in_time(record, frame, sources)

    def _note(self, frame: Frame, sources: Array, record: Record) -> None:
        """What the rows say of their sources: whether they are simulated, and where they are."""
        table, starts = self.ledger.sources, frame.manifest.starts()
        with_rows = frame.manifest.rows > 0
        sources, starts = sources[with_rows], starts[with_rows]
        if "simulated" in frame.batch.schema.names:
            rows = frame.numbers("simulated")[0].astype(bool)
            table.rows["simulated"][sources] = np.logical_or.reduceat(rows, starts)
        if "region" in frame.batch.schema.names and record.topic is not Topic.BACKLOG:
            firsts: Any = pa.array(starts)
            encoded: Any = pc.dictionary_encode(frame.batch.column("region").take(firsts))
            regions = [table.region_at(name, record.time) for name in encoded.dictionary.to_pylist()]
            indices = np.asarray(encoded.indices.fill_null(len(regions)))
            table.rows["region"][sources] = np.array([*regions, -1])[indices]

    def _in_time(self, record: Record, frame: Frame, sources: Array) -> Taken:
        offsets = self._offsets(record, frame, sources)
        times = frame.times()
        if offsets.any():
            times = times - np.repeat(offsets, frame.manifest.rows)
            frame = _with_times(frame, times)
        ahead = times - record.time
        late = BACKLOG_SECONDS_MAX if record.topic is Topic.BACKLOG else LATE_SECONDS_MAX
        kept = (ahead <= FUTURE_SECONDS_MAX) & (ahead >= -late)
        if kept.all():
            return Taken(record, frame)
        worst = ahead[~kept][np.argmax(np.abs(ahead[~kept]))]
        message = (
            f"{int((~kept).sum())} of {frame.rows} rows are out of their window once the clock's offset is taken off: "
            f"the worst is {worst:+.1f} s from the bus's clock, "
            f"allowed are -{late:.0f} s to +{FUTURE_SECONDS_MAX:.0f} s"
        )
        self.refused[FrameFault.OUT_OF_WINDOW] += 1
        refusal = Refusal(record, FrameFault.OUT_OF_WINDOW, message)
        return Taken(record, _filter_rows(frame, kept) if kept.any() else None, (refusal,))

    def _offsets(self, record: Record, frame: Frame, sources: Array) -> Array:
        """For every run the seconds by which its clock is ahead; 0 within the tolerance."""
        measured = frame.manifest.sents - record.time
        offsets = np.where(np.abs(measured) > CLOCK_TOLERANCE_SECONDS, measured, 0.0)
        self.ledger.sources.rows["offset"][sources] = offsets
        return offsets


def _with_times(frame: Frame, times: Array) -> Frame:
    index = frame.batch.schema.get_field_index("time")
    batch = frame.batch.set_column(index, frame.batch.schema.field(index), micros_of(times))
    return replace(frame, batch=batch)


def _filter_rows(frame: Frame, kept: Array) -> Frame:
    """Only the kept rows; runs shrink with them."""
    counts = np.concatenate([[0], np.cumsum(kept)])
    starts = frame.manifest.starts()
    rows = counts[starts + frame.manifest.rows] - counts[starts]
    return Frame(frame.schema_id, frame.batch.filter(pa.array(kept)), frame.manifest.counting(rows))


def topic_of(schema_id: str) -> Topic:
    """The live topic that carries ``schema_id``."""
    return next(
        topic for topic, schemas in TOPIC_SCHEMAS.items() if schema_id in schemas and topic is not Topic.BACKLOG
    )
