"""What a collector that is cut off from the bus reports to a gateway: an encoded ``finding/1`` frame. Pure."""

from telemetry_bus.cut_off import clock_offsets, on_our_clock
from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.findings import Finding, findings_in
from telemetry_bus.frames import decode

REPORT_BYTES_MAX = 1024 * 1024
"""A finding has some 2 KB and the longest text of a schema 64 KB: a report is small. A larger one is refused, so that
reading it never holds up the event loop for more than some ten milliseconds."""
REPORT_ROWS_MAX = 256
"""A node has some eight jobs, and their findings are reported as they come."""

_FINDINGS = frozenset({"finding/1"})


def read_report(payload: bytes, now: float) -> list[Finding]:
    """The findings in ``payload``, in the time of the clock that says ``now`` (UTC seconds), however wrong that of the
    node is. Raises :class:`FrameError` for what is no report."""
    if len(payload) > REPORT_BYTES_MAX:
        message = f"a report of {len(payload)} bytes; at most {REPORT_BYTES_MAX}: report fewer findings at once"
        raise FrameError(FrameFault.TOO_LARGE, message)
    frame = decode(payload, _FINDINGS)
    if frame.rows > REPORT_ROWS_MAX:
        message = f"a report of {frame.rows} findings; at most {REPORT_ROWS_MAX}: report fewer at once"
        raise FrameError(FrameFault.TOO_MANY_ROWS, message)
    try:
        found = findings_in(frame)
    except ValueError as error:
        raise FrameError(FrameFault.BAD_BATCH, str(error)) from error
    offsets = clock_offsets(frame, now)
    return [on_our_clock(finding, offset, now) for finding, offset in zip(found, offsets, strict=True)]
