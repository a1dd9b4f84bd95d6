"""Findings of nodes that were cut off from the bus, on the clock of whoever reads them. Pure.

Detectors speak in the bus's time. A collector that found something while the bus was away could speak only in its own;
it says so by writing ``evidence["ripcord"]``.
"""

from collections.abc import Sequence
from dataclasses import replace

from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame
from telemetry_bus.intake import CLOCK_TOLERANCE_SECONDS

RIPCORD = "ripcord"
"""The part of a finding's evidence that a collector which was cut off has written."""


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


def settled(findings: Sequence[Finding], offsets: Sequence[float], now: float) -> list[Finding]:
    """``findings`` of a frame that the bus took at ``now``, those of cut-off nodes on the bus's clock."""
    return [
        on_our_clock(finding, offset, now) if RIPCORD in finding.evidence else finding
        for finding, offset in zip(findings, offsets, strict=True)
    ]
