"""When something was made, by both clocks of a machine, and what has become of these clocks since."""

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from telemetry_bus.frames import Frame, micros_of
from telemetry_bus.runtime.clock import Clock

STEP_SECONDS_MIN = 0.1
"""The two clocks are read one after the other, some microseconds apart or, on a busy machine, some milliseconds: what
differs by less is no step of the wall clock."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Moment:
    """``wall`` (UTC seconds) and ``monotonic`` at one instant of the machine's ``boot``."""

    boot: uuid.UUID
    wall: float
    monotonic: float

    def passed_since(self, then: "Moment") -> tuple[float, float]:
        """Seconds that passed since ``then``, and by how many the wall clock was set meanwhile (mostly 0.0).

        Across a start of the machine only the wall clock tells, and nobody knows whether it was set.
        """
        on_the_wall = self.wall - then.wall
        if self.boot != then.boot:
            return max(0.0, on_the_wall), 0.0
        passed = self.monotonic - then.monotonic
        step = on_the_wall - passed
        return passed, step if abs(step) >= STEP_SECONDS_MIN else 0.0


def machine_boot(file: Path = BOOT_ID) -> uuid.UUID:
    """Which start of this machine it is; where the kernel does not tell, every process is taken for another one."""
    try:
        return uuid.UUID(file.read_text().strip())
    except (OSError, ValueError):
        return uuid.uuid4()


def moment_of(clock: Clock, boot: uuid.UUID) -> Moment:
    """This instant."""
    return Moment(boot, clock.now(), clock.monotonic())


def brought_to(frame: Frame, then: Moment, now: Moment) -> Frame:
    """``frame``, which was stamped ``then``, as it is sent ``now``.

    If the wall clock was set in between, its rows are put on the clock as it is now, so that the clock's offset, which
    a reader measures by ``sent``, is theirs too. Each run keeps its own maker's difference to this machine's clock.
    """
    passed, step = now.passed_since(then)
    runs = tuple(replace(run, sent=run.sent + passed + step) for run in frame.manifest)
    if not step:
        return Frame(frame.schema_id, frame.batch, runs)
    at = frame.batch.schema.get_field_index("time")
    moved = micros_of(np.asarray(frame.times()) + step)
    return Frame(frame.schema_id, frame.batch.set_column(at, frame.batch.schema.field(at), moved), runs)


class RunningClock:
    """The log's clock in a spool: it only runs, whatever is done to the wall clock, and goes on where the entries
    end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead: float | None = None

    def set_going(self, now: float) -> None:
        """Let it show ``now``."""
        self._ahead = now - self._clock.monotonic()

    def now(self) -> float:
        """Seconds; before it was set going nothing is older than anything."""
        return 0.0 if self._ahead is None else self._clock.monotonic() + self._ahead

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self._clock.monotonic()
