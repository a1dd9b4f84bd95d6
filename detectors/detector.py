"""What a detector is: a frozen configuration builds it, it is given frames and ticks, and it returns findings.

A detector does no I/O and never reads a clock. It is deterministic: the same frames and ticks in the same order give
the same findings under the same ids, live, in a test and in a replay. How the rows are cut into frames does not
matter.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame
from telemetry_bus.intake import Intake
from telemetry_bus.source_table import ClockOffsets, LastSeen, SimulatedSources, SourceRegions
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class Holes:
    """Frames of one source that were made but have not come: how many, and since when (UTC seconds) the oldest is
    missed."""

    outstanding: int
    since: float


@dataclass(frozen=True, slots=True)
class ReaderHealth:
    """How well the bus is being read, as plain numbers at the moment of a tick. Detectors that watch Nantucket read it.

    ``lag_seconds`` has topics with records that wait to be dealt with, and since how long the oldest does (none while
    a reader is only catching up). ``last_seen`` maps a source to the bus's time of its newest frame; ``holes`` has only
    sources that miss some; ``lost`` counts the frames that will not come any more; ``clock_offsets`` has only clocks
    beyond the tolerance (seconds ahead of the bus's); ``refused`` counts refusals since the start, by reason.
    """

    lag_seconds: Mapping[Topic, float] = field(default_factory=dict)
    last_seen: Mapping[str, float] = field(default_factory=dict)
    holes: Mapping[str, Holes] = field(default_factory=dict)
    lost: int = 0
    clock_offsets: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    simulated: Container[str] = frozenset()
    """The sources whose rows are simulated."""
    regions: Mapping[str, float] = field(default_factory=dict)
    """By region, the bus's time (UTC seconds) of its newest frame."""
    region_of: Mapping[str, str] = field(default_factory=dict)
    """By source, the region that it has said it is in."""
    watching_since: float = 0.0
    """The bus's time since which ticks have come without a gap. Nobody watched before: silence then proves nothing."""
    reader: str = ""
    """Which copy of the detectors reads, as the source of its findings is named (``node-3/detect``)."""
    part: str = ""
    """Which slice it reads (``0/4``); empty where it reads all."""


def reader_health(
    intake: Intake, lag_seconds: Mapping[Topic, float], watching_since: float, reader: str = "", part: str = ""
) -> ReaderHealth:
    """What ``intake`` of the copy ``reader`` knows now, and since how long records of each topic wait."""
    holes: dict[str, Holes] = {}
    for count in intake.ledger.holed():
        known = holes.get(count.source)
        since = count.holes.oldest
        holes[count.source] = Holes(
            len(count.holes) + (known.outstanding if known else 0), min(since, known.since) if known else since
        )
    refused = {fault.value: number for fault, number in intake.refused.items()}
    sources = intake.ledger.sources.snapshot()
    return ReaderHealth(
        lag_seconds=dict(lag_seconds),
        last_seen=LastSeen(sources),
        holes=holes,
        lost=intake.ledger.lost_total,
        clock_offsets=ClockOffsets(sources),
        refused=refused,
        simulated=SimulatedSources(sources),
        regions=sources.region_seen,
        region_of=SourceRegions(sources),
        watching_since=watching_since,
        reader=reader,
        part=part,
    )


class Detector(Protocol):
    """Running state. ``name`` is also the file's name, the metric label and the heading in the documentation."""

    @property
    def name(self) -> str:
        """The registered name."""
        ...

    @property
    def topics(self) -> frozenset[Topic]:
        """The topics whose frames it wants; ticks come to every detector."""
        ...

    def remember(self, finding: Finding, now: float) -> None:
        """Take up, as open, trouble that was said before a restart and not taken back: it is not said again, and its
        end is said. Called once for each such finding, at ``now`` (UTC seconds), when what was read back has been
        seen and before anything new is."""
        ...

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Take fresh rows of one of ``topics``, in the order of the bus. Never raises for what is in them."""
        ...

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Take the bus's clock (UTC seconds), which finds silence, and the health of the reader."""
        ...


@runtime_checkable
class EndsElsewhere(Protocol):
    """A detector whose trouble may be over without a live row that shows it."""

    def ended(self, finding: Finding) -> None:
        """A node that was cut off has said the end (``finding``, on the bus's clock): its rows come as backlog only."""
        ...


class DetectorConfig(Protocol):
    """A frozen, comparable configuration."""

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        ...
