"""From records of the findings topic to findings. What cannot be read is refused row by row; the rest is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alerting.receipts import EVIDENCE
from telemetry_bus.bus import Record
from telemetry_bus.errors import FrameFault
from telemetry_bus.findings import Finding, findings_in
from telemetry_bus.frames import Frame
from telemetry_bus.intake import CLOCK_TOLERANCE_SECONDS, Intake, Refusal


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
        findings.extend(_settled(findings_in(frame), offsets, record.time))
    except ValueError:
        # Some row is bad: only then is it worth looking at each alone.
        for row in range(frame.rows):
            try:
                alone = findings_in(replace(frame, batch=frame.batch.slice(row, 1)))
                findings.extend(_settled(alone, offsets[row : row + 1], record.time))
            except ValueError as error:
                message = f"of {frame.rows} rows, number {row} (from 0) is no finding: {error}"
                refusals.append(Refusal(record, FrameFault.BAD_BATCH, message))


def _settled(findings: Sequence[Finding], offsets: Sequence[float], now: float) -> list[Finding]:
    """Detectors speak in the bus's time; a collector that was cut off could speak only in its own."""
    return [
        on_our_clock(finding, offset, now) if EVIDENCE in finding.evidence else finding
        for finding, offset in zip(findings, offsets, strict=True)
    ]


def clock_offsets(frame: Frame, now: float) -> list[float]:
    """By row: how many seconds the clock of the frame's maker is ahead of ``now``; 0 within the tolerance."""
    measured = [(run.rows, run.sent - now) for run in frame.manifest]
    return [
        offset if abs(offset) > CLOCK_TOLERANCE_SECONDS else 0.0 for rows, offset in measured for _row in range(rows)
    ]


def on_our_clock(finding: Finding, offset: float, now: float) -> Finding:
    """``finding`` with the offset of its maker's clock taken off, and nothing of it later than ``now``.

    Trouble that seems to begin in ten years would outlast every end of it. The clock may have been set right since the
    finding was made: then no offset is measured any more, and ``now`` is the latest that it can be.
    """
    onset = finding.onset_time
    return replace(
        finding,
        time=min(finding.time - offset, now),
        onset_time=None if onset is None else min(onset - offset, now),
    )
