"""From records of the findings topic to findings. What cannot be read is refused row by row; the rest is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from telemetry_bus.bus import Record
from telemetry_bus.cut_off import clock_offsets, settled
from telemetry_bus.errors import FrameFault
from telemetry_bus.findings import Finding, findings_in
from telemetry_bus.frames import Frame
from telemetry_bus.intake import Intake, Refusal


@dataclass(frozen=True, slots=True)
class Found:
    """What came of some records."""

    findings: Sequence[Finding]
    refusals: Sequence[Refusal]


class FindingsIntake:
    """Reads records in order; it remembers which frames it has seen."""

    def __init__(self) -> None:
        self._intake = Intake()

    def take(self, records: Sequence[Record]) -> Found:
        """The findings in ``records`` and what was refused."""
        findings: list[Finding] = []
        refusals: list[Refusal] = []
        for record in records:
            taken = self._intake.take(record)
            refusals.extend(taken.refusals)
            if taken.frame is not None:
                _read(record, taken.frame, findings, refusals)
        return Found(findings, refusals)


def _read(record: Record, frame: Frame, findings: list[Finding], refusals: list[Refusal]) -> None:
    offsets = clock_offsets(frame, record.time)
    try:
        findings.extend(settled(findings_in(frame), offsets, record.time))
    except ValueError:
        # Some row is bad: only then is it worth looking at each alone.
        for row in range(frame.rows):
            try:
                alone = findings_in(replace(frame, batch=frame.batch.slice(row, 1)))
                findings.extend(settled(alone, offsets[row : row + 1], record.time))
            except ValueError as error:
                message = f"of {frame.rows} rows, number {row} (from 0) is no finding: {error}"
                refusals.append(Refusal(record, FrameFault.BAD_BATCH, message))
