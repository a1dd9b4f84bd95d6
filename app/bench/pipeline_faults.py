"""Which of the faults that `bench pipeline` injected were found: read from the findings on the bus."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from telemetry_bus import Earliest, Finding, Intake, Topic, findings_in, open_bus
from telemetry_bus.findings import FindingKind
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.schemas import FindingState

WAIT_SECONDS = 30.0
"""What has not been found by then was not found."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many faults were found, which were not, and after how many seconds the non-finite ones were on the bus."""

    count: int
    missing: Sequence[str]
    after: Mapping[str, float]

    @property
    def after_p50_s(self) -> float | None:
        """The median."""
        return round(float(np.median(list(self.after.values()))), 3) if self.after else None

    @property
    def after_max_s(self) -> float | None:
        """The longest."""
        return round(max(self.after.values()), 3) if self.after else None


async def found_faults(url: str, injected: Sequence[Mapping[str, Any]]) -> Found:
    """Read the findings until every one of ``injected`` is there, or for :data:`WAIT_SECONDS`."""
    wanted = {fault.get("job") or fault["silent"]: fault for fault in injected}
    seen: dict[str, float] = {}
    intake = Intake()
    try:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            open_bus(url, SystemClock()) as bus,
            bus.subscribe([Topic.FINDINGS], Earliest()) as subscription,
        ):
            async for records in subscription:
                for record in records:
                    frame = intake.take(record).frame
                    for finding in findings_in(frame) if frame is not None else ():
                        seen.update((name, record.time) for name in _names(finding) if name not in seen)
                if wanted.keys() <= seen.keys():
                    break
    except TimeoutError:
        pass  # what is missing is said below
    after = {name: seen[name] - fault["time"] for name, fault in wanted.items() if name in seen and "time" in fault}
    missing = sorted(wanted.keys() - seen.keys())
    return Found(len(wanted) - len(missing), missing, after)


def _names(finding: Finding) -> list[str]:
    """What a finding says is in trouble, as the generator names it."""
    if finding.state is not FindingState.FIRING:
        return []
    if finding.kind is FindingKind.NONFINITE:
        return [finding.job] if finding.job else []
    if finding.kind is FindingKind.SILENT_SOURCE:
        return [str(name) for name in finding.evidence["names"]]
    return []
