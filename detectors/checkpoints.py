"""The checkpoints that jobs say are complete, and which of them is the last good one of a job that went bad."""

import json
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from telemetry_bus.frames import Frame
from telemetry_bus.schemas import EventKind

JOBS_MAX = 4_096
"""Jobs whose checkpoints are remembered; the one that was heard of longest ago goes first."""
KEPT = 16
"""Checkpoints of a job: a job that goes bad is found within steps, and a trend within hours."""
PATH_CHARACTERS_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that is complete: taken in that attempt, of the state behind that step."""

    attempt: str
    step: int
    path: str | None


class Checkpoints:
    """What the jobs have said."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[Checkpoint]] = OrderedDict()

    def observe(self, frame: Frame) -> None:
        """Take the events of a frame."""
        kinds = frame.strings("kind")
        if EventKind.CHECKPOINT_END not in kinds:
            return
        jobs, attempts, details = frame.strings("job"), frame.strings("attempt"), frame.strings("detail")
        steps, has_step = frame.numbers("step")
        for at, kind in enumerate(kinds):
            job = jobs[at]
            if kind == EventKind.CHECKPOINT_END and job is not None and has_step[at]:
                kept = self._jobs.setdefault(job, deque(maxlen=KEPT))
                kept.append(Checkpoint(attempts[at] or "", int(steps[at]), _path(details[at])))
                self._jobs.move_to_end(job)
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)

    def evidence(self, job: str, attempt: str, bad_step: int) -> dict[str, Any]:
        """The last good one of ``job``, for a finding: of a step before ``bad_step``, of this attempt if it has one.

        What was saved at the bad step holds what the bad step has made.
        """
        good = [kept for kept in self._jobs.get(job, ()) if kept.step < bad_step]
        own = [kept for kept in good if kept.attempt == attempt]
        if not good:
            return {}
        last = (own or good)[-1]
        return {"last_good_checkpoint": {"step": last.step, "path": last.path}}


def _path(detail: str | None) -> str | None:
    try:
        path = json.loads(detail or "{}").get("path")
    except (ValueError, AttributeError, RecursionError):
        return None
    return path[:PATH_CHARACTERS_MAX] if isinstance(path, str) and path else None
