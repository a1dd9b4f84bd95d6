"""stall: a job takes no step any more.

Found by ticks: nothing has moved within the longest of a floor, a multiple of the run's own mean interval, and one and
a half times the second longest pause that it has come back from (what has happened twice is how this run works).
Checkpoints and evaluations, where rows or events tell of them, have a patience of their own.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from detectors.checkpoints import Checkpoints
from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.ranks import RankSteps
from detectors.stacks import JobStacks
from detectors.windows import STEP_LIMIT, SeriesTable, not_from_the_future, steps, texts
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.frames import Array, Frame
from telemetry_bus.schemas import WITHOUT_GOODBYE, EventKind, FindingState, Severity
from telemetry_bus.topics import Topic

NAME = "stall"
BACK_SECONDS = 30.0
"""Rows of steps that the job has taken before are a sign of life once nothing new has come for so long: it has gone
back."""
RANKS_SAID = 8
"""Ranks named in the evidence; all are counted."""
PAUSE_PHASES = frozenset({"checkpoint", "eval", "evaluation", "validation", "save", "compile"})
"""Phases in which a job takes no steps and is well."""
LATE_SECONDS = 5.0
"""A row of another rank may arrive after the job's end was told; steps made later than this say that the job goes on
(its ranks end one by one, and each tells it)."""
STACKS_SECONDS = 5.0
"""Stacks of many ranks come within seconds of each other: a stall is said again with them at most so often."""
_RUNNING, _STALLED, _ENDED, _SUPERSEDED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Stall:
    """Settings: floor_seconds, mean_factor (of the run's mean interval), pause_factor (of its second longest pause),
    pause_seconds (patience in a checkpoint or evaluation), warm_up_steps (steps before a job is watched).
    """

    floor_seconds: float = 120.0
    mean_factor: float = 10.0
    pause_factor: float = 1.5
    pause_seconds: float = 1_800.0
    warm_up_steps: int = 5

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise WrongSetting(NAME, item.name, getattr(self, item.name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return StallDetector(self)


def _blank() -> "np.ndarray[tuple[()], np.dtype[np.void]]":
    """``moved``: event time of the newest step; ``sum``/``moves``: intervals; ``longest``, ``second``: longest
    pauses."""
    names = ("seen", "moved", "sum", "longest", "second", "ended")
    blank = np.zeros(
        (), dtype=[*((name, "f8") for name in names), ("step", "i8"), ("moves", "i8"), ("phase", "i1"), ("paused", "?")]
    )
    blank["step"] = -2 * STEP_LIMIT
    return blank


class StallDetector:
    """See the module's text."""

    name = NAME
    topics = frozenset({Topic.TRAIN, Topic.EVENTS})

    def __init__(self, config: Stall) -> None:
        self.config = config
        self.series = SeriesTable(_blank())
        self.ranks = RankSteps()
        self.stacks: dict[int, JobStacks] = {}
        self.checkpoints = Checkpoints()

    def remember(self, finding: Finding, now: float) -> None:
        """Take up the stall of ``finding``, with the pace that the run had before it."""
        key = (finding.job or "", finding.attempt or "")
        known = self.series.slot(key)
        slot = self.series.slot_for(key)
        if slot is None:
            return
        state, config = self.series.state, self.config
        if state["phase"][slot] in (_ENDED, _SUPERSEDED):
            return
        if known is None:
            self.ranks.forget(slot)
            state["step"][slot] = finding.onset_step
            state["moved"][slot] = finding.time if finding.onset_time is None else finding.onset_time
            state["moves"][slot] = config.warm_up_steps
            state["sum"][slot] = config.warm_up_steps * float(finding.evidence["mean_interval_seconds"])
            state["longest"][slot] = state["second"][slot] = float(finding.evidence["second_longest_pause_seconds"])
        state["phase"][slot] = _STALLED
        state["seen"][slot] = max(float(state["seen"][slot]), now)

    @np.errstate(all="ignore")  # a job may send any number: comparisons with NaN and products that overflow are meant
    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Note which jobs have moved."""
        if not frame.rows:
            return ()
        if frame.schema_id == "event/1":
            self.checkpoints.observe(frame)
            return self._events(frame)
        return [finding for piece in self.series.pieces(frame) for finding in self._piece(*piece)]

    def _piece(self, frame: Frame, slots: Array, new: list[int]) -> list[Finding]:
        seconds, step = frame.times(), steps(frame)
        said: list[tuple[int, Finding]] = []
        for slot in new:
            self.ranks.forget(slot)
            self.stacks.pop(slot, None)
            said.extend((-1, finding) for finding in self._superseded(slot, float(seconds[0])))
        at = np.flatnonzero(slots >= 0)
        self.ranks.note(slots[at], frame.numbers("rank")[0][at], step[at])
        np.maximum.at(self.series.state["seen"], slots[at], seconds[at])
        names, codes = texts(frame, "phase")
        pausing = np.array([name in PAUSE_PHASES for name in names])[codes]
        for part in self._parts(slots, at, pausing):
            moved = self._moved(slots[part], step[part], seconds[part])
            said.extend(self._move(slots, step, seconds, part[moved]))
            if pausing.any() or self.series.state["paused"][slots[part]].any():
                told = part[np.array([bool(names[code]) for code in codes[part]])]
                self.series.state["paused"][slots[told]] = pausing[told]
        return [finding for _row, finding in sorted(said, key=lambda item: item[0])]

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Find the jobs whose patience has ended."""
        state = self.series.state
        for name in ("moved", "ended"):
            not_from_the_future(state[name], now)
        patience = self._patience(state)
        watched = (state["phase"] == _RUNNING) & (state["moves"] >= self.config.warm_up_steps)
        found = []
        for slot in np.flatnonzero(
            watched & (now - np.maximum(state["moved"], health.watching_since) > patience)
        ).tolist():
            if self.series.keys[slot] is not None:
                state["phase"][slot] = _STALLED
                found.append(self._stalled(slot, now, float(patience[slot])))
        found.extend(self._placed(now))
        for slot in self.series.silent(now):
            if state["phase"][slot] != _STALLED:
                self.ranks.forget(slot)
                self.stacks.pop(slot, None)
                self.series.free(slot)
        return found

    def _placed(self, now: float) -> Iterator[Finding]:
        """Stalls whose stacks have come since they were said: they are said once more, with where the ranks stand."""
        for slot, stacks in self.stacks.items():
            if stacks.fresh and now - stacks.told >= STACKS_SECONDS and self.series.state["phase"][slot] == _STALLED:
                yield self._stalled(slot, now, float(self._patience(self.series.state)[slot]))

    def _patience(self, state: Any) -> Any:
        mean = state["sum"] / np.maximum(state["moves"], 1)
        learned = np.maximum(self.config.mean_factor * mean, self.config.pause_factor * state["second"])
        usual = np.maximum(self.config.floor_seconds, learned)
        return np.where(state["paused"], np.maximum(usual, self.config.pause_seconds), usual)

    def _moved(self, slots: Array, step: Array, seconds: Array) -> Array:
        """Which rows moved their job on. ``slots`` are all different, or all the same."""
        state = self.series.state
        if len(slots) == 1 or slots[0] != slots[-1]:
            known = state[["step", "moved"]][slots]
            return np.flatnonzero((step > known["step"]) | (seconds > known["moved"] + BACK_SECONDS))
        step_before, moved = int(state["step"][slots[0]]), float(state["moved"][slots[0]])
        top = np.maximum.accumulate(np.r_[step_before, step])
        further = step > top[:-1]
        last = np.maximum.accumulate(np.where(np.r_[True, further], np.arange(len(step) + 1), 0))[:-1]
        since = np.r_[moved, seconds][last]
        if not (~further & (seconds > since + BACK_SECONDS)).any():
            return np.flatnonzero(further)
        rows = []
        for at, (this_step, now) in enumerate(zip(step.tolist(), seconds.tolist(), strict=True)):
            if this_step > step_before or now > moved + BACK_SECONDS:
                step_before, moved = this_step, now
                rows.append(at)
        return np.array(rows, dtype=np.intp)

    def _move(self, slots: Array, step: Array, seconds: Array, rows: Array) -> Iterator[tuple[int, Finding]]:
        """Rows that moved their jobs on: all of one job in order, or each of another."""
        if not len(rows):
            return
        state, slot = self.series.state, slots[rows]
        one = slot[0] == slot[-1]
        before = np.r_[state["moved"][slot[0]], seconds[rows[:-1]]] if one else state["moved"][slot]
        first = (state["moves"][slot] == 0) & (state["step"][slot] <= -STEP_LIMIT - 1)
        if one:
            first[1:] = False
        took = np.maximum(seconds[rows] - before, 0.0)
        resumed = np.zeros(len(rows), dtype=bool)
        for at in np.flatnonzero((state["phase"][slot] == _STALLED) & ~first).tolist():
            if state["phase"][slot[at]] == _STALLED:
                resumed[at] = True
                yield (
                    int(rows[at]),
                    self._over(int(slot[at]), float(seconds[rows[at]]), int(step[rows[at]]), "steps come again"),
                )
        on = (state["phase"][slot] == _ENDED) & (seconds[rows] > state["ended"][slot] + LATE_SECONDS)
        state["phase"][slot[on]] = _RUNNING
        learn = ~first & ~state["paused"][slot]
        usual = learn & ~resumed  # hours of a stall are no part of the run's pace
        np.add.at(state["sum"], slot[usual], took[usual])
        np.add.at(state["moves"], slot[~first & ~resumed], 1)
        for at in np.flatnonzero(learn & (took > state["second"][slot])).tolist():
            longest, second = float(state["longest"][slot[at]]), float(state["second"][slot[at]])
            state["second"][slot[at]] = max(second, min(longest, took[at]))
            state["longest"][slot[at]] = max(longest, took[at])
        last = rows[-1:] if one else rows
        state["step"][slots[last]], state["moved"][slots[last]] = step[last], seconds[last]
        if self.stacks:
            for each in slots[last].tolist():
                self.stacks.pop(each, None)  # it goes on: where it stood is of no use any more
        state["paused"][slots[last]] = False

    def _parts(self, slots: Array, at: Array, pausing: Array) -> Iterator[Array]:
        """The rows in parts that can be taken at once; where a pause begins or ends, row by row."""
        for part in _segments(slots, at):
            if pausing[part].any() or self.series.state["paused"][slots[part]].any():
                yield from np.split(part, len(part))
            else:
                yield part

    def _events(self, frame: Frame) -> list[Finding]:
        found: list[Finding] = []
        kinds, jobs, attempts = frame.strings("kind"), frame.strings("job"), frame.strings("attempt")
        details, nodes, ranks = frame.strings("detail"), frame.strings("node"), frame.numbers("rank")[0]
        for at, kind in enumerate(kinds):
            slot = self.series.slot((jobs[at] or "", attempts[at] or ""))
            if slot is None:
                continue
            detail = details[at] or "{}"
            if kind == EventKind.JOB_END and WITHOUT_GOODBYE in detail:
                self.stacks.setdefault(slot, JobStacks()).ended(int(ranks[at]), nodes[at] or "")
            elif kind == EventKind.JOB_END:
                found.extend(self._end(slot, float(frame.times()[at]), "the job has ended"))
            elif kind == EventKind.STACK:
                self.stacks.setdefault(slot, JobStacks()).note(int(ranks[at]), detail)
            elif kind == EventKind.PHASE:
                self._phase(slot, detail)
            elif kind in (EventKind.CHECKPOINT_BEGIN, EventKind.CHECKPOINT_END):
                self.series.state["paused"][slot] = kind == EventKind.CHECKPOINT_BEGIN
        return found

    def _phase(self, slot: int, detail: str) -> None:
        """A job says that it pauses, or goes on."""
        try:
            told = json.loads(detail)
        except (ValueError, RecursionError):
            return
        if isinstance(told, dict) and str(told.get("phase")) in PAUSE_PHASES:
            self.series.state["paused"][slot] = told.get("state") == "begin"

    def _superseded(self, new_slot: int, now: float) -> list[Finding]:
        """A new attempt ends the watch over those before."""
        job, attempt = self.series.keys[new_slot] or ("", "")
        older = [slot for slot in self.series.of_job(job) if slot != new_slot]
        found = [finding for slot in older for finding in self._end(slot, now, f"attempt {attempt} has begun")]
        self.series.state["phase"][older] = _SUPERSEDED
        return found

    def _end(self, slot: int, now: float, words: str) -> list[Finding]:
        state = self.series.state
        stalled = state["phase"][slot] == _STALLED
        found = [self._over(slot, now, int(state["step"][slot]), words)] if stalled else []
        state["phase"][slot], state["ended"][slot] = _ENDED, now
        return found

    def _stalled(self, slot: int, now: float, patience: float) -> Finding:
        job, attempt = self.series.keys[slot] or ("", "")
        series = self.series.state[slot]
        step, moved = int(series["step"]), float(series["moved"])
        behind, lowest, ranks = self.ranks.behind(slot)
        silence = now - moved
        names = ", ".join(str(rank) for rank in behind[:RANKS_SAID])
        who = (
            f" Behind are {len(behind)} of {ranks} ranks, at step {lowest}: {names}." if 0 < len(behind) < ranks else ""
        )
        mean = float(series["sum"]) / max(int(series["moves"]), 1)
        stacks = self.stacks.setdefault(slot, JobStacks())
        stand = stacks.said()
        told_before = stacks.told
        stacks.fresh, stacks.told = False, now
        more = (stand,) if told_before else ()
        return Finding(
            id=finding_id(NAME, job, attempt, step, moved, "firing", *more),
            time=now,
            detector=NAME,
            kind=FindingKind.STALL,
            state=FindingState.FIRING,
            severity=Severity.CRITICAL,
            title=f"{job}: no step since step {step}, {silence:.0f} s ago" + (f": {stand}" if stand else ""),
            message=f"A step took {mean:.3g} s on average; {patience:.0f} s of silence are the limit.{who}",
            job=job,
            attempt=attempt,
            rank=stacks.odd(),
            step=step,
            onset_step=step,
            onset_time=moved,
            world_size=None,
            evidence={
                "silence_seconds": silence,
                "limit_seconds": patience,
                "mean_interval_seconds": mean,
                "second_longest_pause_seconds": float(series["second"]),
                "in_pause": bool(series["paused"]),
                "ranks_seen": ranks,
                "ranks_behind": len(behind) if len(behind) < ranks else 0,
                "first_ranks_behind": behind[:RANKS_SAID] if len(behind) < ranks else [],
                "lowest_step": lowest,
                **stacks.evidence(),
                **self.checkpoints.evidence(job, attempt, step + 1),
            },
        )

    def _over(self, slot: int, now: float, step: int, words: str) -> Finding:
        job, attempt = self.series.keys[slot] or ("", "")
        state = self.series.state
        onset, moved = int(state["step"][slot]), float(state["moved"][slot])
        state["phase"][slot] = _RUNNING
        return Finding(
            id=finding_id(NAME, job, attempt, onset, moved, "resolved"),
            time=now,
            detector=NAME,
            kind=FindingKind.STALL,
            state=FindingState.RESOLVED,
            severity=Severity.CRITICAL,
            title=f"{job}: {words} after {now - moved:.0f} s",
            message=f"The last step before was {onset}.",
            job=job,
            attempt=attempt,
            step=step,
            onset_step=onset,
            onset_time=moved,
            evidence={"silence_seconds": now - moved},
        )


def _segments(slots: Array, at: Array) -> Iterator[Array]:
    """The rows ``at`` in parts of which each has every series once, or one series alone (in order)."""
    if not len(at):
        return
    order = at[np.argsort(slots[at], kind="stable")]
    begins = np.flatnonzero(np.r_[True, slots[order][1:] != slots[order][:-1]])
    if len(begins) == len(order):
        yield at
        return
    yield from np.split(order, begins[1:])
