"""What ``nantucket doctor`` says of the sources of this node: what each reads, and what it could not read and why."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from app.checks import Checked, Verdict
from app.roles.collect import chosen_sources, driver_here, source_options
from app.settings import Settings
from collectors.errors import CollectorError, FieldFailure
from collectors.once import RATE_SECONDS
from collectors.source import Source, SourceReading
from telemetry_bus.runtime.clock import Clock

Failure = tuple[str, FieldFailure]
NAMES_SAID_MAX = 12
"""Of more metrics that fail for one reason the first are named and the rest counted."""
REMEDIES = {
    FieldFailure.NOT_PERMITTED: "Run the collector as root, or lift the driver's restriction of its counters.",
    FieldFailure.NO_ANSWER: "Something hangs: look at nvidia-smi and the kernel log.",
    FieldFailure.GPU_LOST: "A GPU does not answer: drain the node and reset it; docs/xids.md says how by code.",
}


async def source_checks(settings: Settings, clock: Clock) -> Sequence[Checked]:
    """One check for each source that this node reads, in the order in which the collector reads them."""
    chosen = chosen_sources(settings, source_options(settings, keeps=False), clock)
    checks = [await _checked(source, clock, named=source in chosen.named) for source in (*chosen.named, *chosen.found)]
    if not driver_here() and "nvml" not in settings.collect.source:
        words = "no NVIDIA driver is loaded on this machine; GPUs can only be simulated"
        checks.insert(0, Checked("nvml", Verdict.NOTE, words))
    return checks


async def _checked(source: Source, clock: Clock, *, named: bool) -> Checked:
    try:
        async with source:
            reading = await source.read(clock.now())
            failures = await _lasting(source, reading, clock)
            unreadable = source.unreadable()
    except CollectorError as error:
        verdict = Verdict.FAULT if named or source.name == "nvml" else Verdict.NOTE
        return Checked(source.name, verdict, str(error), "Until then the collector tries again every minute.")
    found = "; ".join([_rows(reading), *_by_reason(failures), *unreadable])
    remedy = " ".join(REMEDIES[reason] for reason in REMEDIES if any(why is reason for _, why in failures))
    verdict = Verdict.NOTE if failures or unreadable else Verdict.OK
    return Checked(source.name, verdict, found, remedy or None)


def _rows(reading: SourceReading) -> str:
    gpus = 0 if reading.gpus is None else reading.gpus.rows
    links = 0 if reading.links is None else reading.links.rows
    said = [f"{number} {what}" for number, what in ((gpus, "GPU rows"), (links, "link rows")) if number]
    return ", ".join([*said, f"{len(reading.events)} events"])


async def _lasting(source: Source, first: SourceReading, clock: Clock) -> list[Failure]:
    """What was not read, without what a second reading gives: a rate takes two."""
    if first.gpus is None:
        return list(first.failures)
    await asyncio.sleep(RATE_SECONDS)
    again = (await source.read(clock.now())).gpus
    given = {name for name, column in again.metrics.items() if column.valid.all()} if again is not None else set()
    return [failure for failure in first.failures if failure[0] not in given]


def _by_reason(failures: Sequence[Failure]) -> list[str]:
    """The metrics that were not read, by reason."""
    by_reason: dict[FieldFailure, list[str]] = defaultdict(list)
    for name, why in failures:
        by_reason[why].append(name)
    return [f"{why.value}: {_listed(sorted(names))}" for why, names in sorted(by_reason.items())]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SAID_MAX
    return ", ".join(names[:NAMES_SAID_MAX]) + (f" and {more} more" if more > 0 else "")
