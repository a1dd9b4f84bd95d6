"""clock_offset: a machine's clock is far from the bus's.

The offset has been taken off its rows already (see :mod:`telemetry_bus.intake`), so nothing is lost; but its own logs,
and whatever else runs there, are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.latch import Latch
from detectors.watching import Unseen, firing, group_of, names, place_of, resolved
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Settings: hold_seconds before it is said, clear_seconds until it is taken back."""

    hold_seconds: float = 10.0
    clear_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("hold_seconds", "clear_seconds"):
            if not getattr(self, name) > 0:
                raise WrongSetting("clock_offset", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return ClockOffsetDetector(self)


class ClockOffsetDetector:
    """See the module's text."""

    name = "clock_offset"
    topics: frozenset[Topic] = frozenset()

    def __init__(self, config: ClockOffset) -> None:
        self.config = config
        self._latch = Latch(config.hold_seconds, config.clear_seconds)
        self._unseen = Unseen()

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        group = group_of(finding)
        if self._latch.adopt(group, now):
            self._unseen.remember(group, now)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """It lives on ticks alone."""
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Say which clocks are off, and by how much."""
        raised, over = self._latch.update(
            now, [*health.clock_offsets, *self._unseen.still(now, health.last_seen)], health.simulated
        )
        kind, severity = FindingKind.CLOCK_OFFSET, Severity.WARNING
        found = []
        for group in raised:
            worst = max((health.clock_offsets.get(name, 0.0) for name in group.names), key=abs)
            what = (
                f"the clock of {group.names[0]} is" if len(group.names) == 1 else f"{len(group.names)} clocks are up to"
            )
            way = "ahead of" if worst > 0 else "behind"
            title = f"{what} {abs(worst):.3g} s {way} the bus's"
            message = f"The offset is taken off its rows. Check time synchronisation on: {names(group)}."
            evidence, place = {"offset_seconds": worst}, place_of(group, health.simulated)
            found.append(firing(kind, severity, group, now, title, message, evidence, **place))
        found.extend(resolved(kind, severity, group, now, f"clock right again: {names(group)}") for group in over)
        return found
