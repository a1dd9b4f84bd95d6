"""The jobs: attempts, curves, rates, ranks, and the first non-finite numbers of each.

Pure: frames come in, state is kept, bounded and freed when silent. Rows are grouped by numpy; only the rows of the one
rank whose curve is shown are walked, one a step.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from dashboards.curves import COLUMNS, Curve
from telemetry_bus.frames import Frame
from telemetry_bus.schemas import EventKind, Scope

Array = np.ndarray[Any, np.dtype[Any]]

JOBS_MAX = 1_024
"""The 200 jobs of a busy fleet, five times over. A full curve weighs 170 KiB: 0.7 GiB if all had four full ones."""
ATTEMPTS_MAX = 4
"""Attempts of a job whose curves are kept; older ones are only counted."""
MARKS_MAX = 64
"""Non-finite rows that are kept of an attempt: the first ones, which say where it began."""
METRICS_MAX = 64
"""Named numbers of an attempt whose newest value is kept."""
RANKS_MAX = 1 << 20
"""Leviathan has 300,000 ranks; a bit array of them all takes 1 MiB."""
SILENT_SECONDS = 60.0
"""A job whose rows have stopped for so long is shown as silent, and has no rates: the slowest steps take less."""
FORGET_SECONDS = 6 * 3600.0
"""A job that has been silent for six hours is no longer shown."""
RATE_SECONDS = 30.0
"""The window of the step rate."""
_SCOPE_ORDER = {Scope.GLOBAL: 0, None: 1, Scope.SHARD: 2, Scope.MICROBATCH: 3}


@dataclass(frozen=True, slots=True)
class Mark:
    """A row with a non-finite number: ``what`` names the columns; ``parameter`` is the first one that has it."""

    step: int
    rank: int
    what: tuple[str, ...]
    parameter: str | None
    time: float


@dataclass(slots=True)
class Attempt:
    """One attempt of a job. ``reporter`` is (order of the scope, rank) of the row that the curve follows."""

    name: str
    first_seen: float
    last_seen: float
    curve: Curve = field(default_factory=Curve)
    reporter: tuple[int, int] = (len(_SCOPE_ORDER), RANKS_MAX)
    world_size: int | None = None
    ended: bool = False
    rows: int = 0
    marks: list[Mark] = field(default_factory=list)
    marks_dropped: int = 0
    metrics: OrderedDict[str, float | None] = field(default_factory=OrderedDict)
    ranks: Array = field(default_factory=lambda: np.zeros(64, np.bool_))
    tokens: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ranks_seen(self) -> int:
        """How many ranks have sent a row."""
        return int(self.ranks.sum())

    def tokens_per_second(self, now: float) -> float | None:
        """Tokens a second of the reporting rank over the window; ``None`` where it does not say."""
        within = [(time, count) for time, count in self.tokens if time >= now - RATE_SECONDS]
        if len(within) < 2 or within[-1][0] <= within[0][0]:
            return None
        return sum(count for _time, count in within[1:]) / (within[-1][0] - within[0][0])


@dataclass(slots=True)
class Job:
    """A job and its newest attempts, oldest first. ``attempts_seen`` counts the forgotten ones too."""

    name: str
    region: str | None = None
    attempts: OrderedDict[str, Attempt] = field(default_factory=OrderedDict)
    attempts_seen: int = 0

    @property
    def newest(self) -> Attempt:
        """The attempt that began last."""
        return next(reversed(self.attempts.values()))

    @property
    def last_seen(self) -> float:
        """Event time of its newest row, UTC seconds."""
        return max(attempt.last_seen for attempt in self.attempts.values())


class JobsState:
    """All jobs that are known, bounded: the longest silent goes first."""

    def __init__(self, jobs_max: int = JOBS_MAX) -> None:
        self.jobs: dict[str, Job] = {}
        self.jobs_dropped = 0
        self.curve_clock = 0
        """Grows by one with each change of any curve; the stream's deltas count in it."""
        self._jobs_max = jobs_max

    def observe(self, frame: Frame) -> None:
        """Take a ``train/1`` frame."""
        rows = TrainRows(frame)
        for job, attempt, at in rows.groups():
            held = self._attempt(job, attempt, float(rows.times[at].max()), rows.region(at[0]))
            self._ranks(held, rows.ranks[at])
            held.rows += len(at)
            sizes = rows.world_size[at]
            if (sizes > 0).any():
                held.world_size = int(sizes[sizes > 0][-1])
            self._points(held, rows, at)
            self._marks(held, rows, at)

    def observe_metrics(self, frame: Frame) -> None:
        """Take a ``metric/1`` frame: the newest value of each name."""
        batch = frame.batch
        times = frame.times()
        values, valid = frame.numbers("value")
        names = zip(*(frame.strings(name) for name in ("job", "attempt", "name", "layer", "region")), strict=True)
        for at, (job, attempt, name, layer, region) in enumerate(names):
            held = self._attempt(str(job), str(attempt), float(times[at]), region)
            key = f"{name} ({layer})" if layer is not None else str(name)
            held.metrics[key] = float(values[at]) if valid[at] else None
            held.metrics.move_to_end(key)
            if len(held.metrics) > METRICS_MAX:
                held.metrics.popitem(last=False)
        assert batch.num_rows == len(times)

    def observe_events(self, frame: Frame) -> None:
        """Take an ``event/1`` frame: jobs start and end."""
        times = frame.times()
        names = zip(*(frame.strings(name) for name in ("kind", "job", "attempt", "region")), strict=True)
        for at, (kind, job, attempt, region) in enumerate(names):
            if job is None or attempt is None:
                continue
            if kind in (EventKind.JOB_START, EventKind.JOB_END):
                held = self._attempt(job, attempt, float(times[at]), region)
                held.ended = kind == EventKind.JOB_END

    def forget(self, now: float) -> None:
        """Free the jobs that have been silent for :data:`FORGET_SECONDS`."""
        self.jobs = {name: job for name, job in self.jobs.items() if now - job.last_seen < FORGET_SECONDS}

    def _attempt(self, name: str, attempt: str, time: float, region: str | None) -> Attempt:
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs[name] = Job(name)
        job.region = region if region is not None else job.region
        held = job.attempts.get(attempt)
        if held is None:
            held = job.attempts[attempt] = Attempt(attempt, time, time)
            job.attempts_seen += 1
            if len(job.attempts) > ATTEMPTS_MAX:
                job.attempts.popitem(last=False)
            if len(self.jobs) > self._jobs_max:
                del self.jobs[min((j for j in self.jobs.values() if j is not job), key=lambda j: j.last_seen).name]
                self.jobs_dropped += 1
        held.last_seen = max(held.last_seen, time)
        return held

    def _ranks(self, held: Attempt, ranks: Array) -> None:
        known = ranks[(ranks >= 0) & (ranks < RANKS_MAX)]
        if len(known):
            if (top := int(known.max())) >= len(held.ranks):
                held.ranks = np.pad(held.ranks, (0, (1 << top.bit_length()) - len(held.ranks)))
            held.ranks[known] = True

    def _points(self, held: Attempt, rows: "TrainRows", at: Array) -> None:
        order = rows.scopes[at] * RANKS_MAX + rows.ranks[at]
        lowest = divmod(int(order.min()), RANKS_MAX)
        held.reporter = min(held.reporter, lowest)
        for row in at[order == held.reporter[0] * RANKS_MAX + held.reporter[1]].tolist():
            self.curve_clock += 1
            held.curve.version = self.curve_clock - 1
            values = tuple(float(v[row]) if ok[row] else None for v, ok in rows.curves)
            held.curve.put(int(rows.steps[row]), float(rows.times[row]), values)
            if rows.tokens[1][row]:
                held.tokens.append((float(rows.times[row]), int(rows.tokens[0][row])))
        horizon = held.last_seen - RATE_SECONDS
        if held.tokens and held.tokens[0][0] < horizon:
            held.tokens = [pair for pair in held.tokens if pair[0] >= horizon]

    def _marks(self, held: Attempt, rows: "TrainRows", at: Array) -> None:
        for row in at[rows.nonfinite[at]].tolist():
            if len(held.marks) >= MARKS_MAX:
                held.marks_dropped += 1
                continue
            held.marks.append(rows.mark(row))


class TrainRows:
    """The columns of a ``train/1`` frame that the jobs' view needs, as arrays of shape ``(rows,)``."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.times = frame.times()
        self.ranks = frame.numbers("rank")[0].astype(np.int64)
        self.steps = frame.numbers("step")[0]
        self.world_size = frame.numbers("world_size")[0]
        self.tokens = frame.numbers("tokens")
        self.curves = [frame.numbers(name) for name in COLUMNS]
        self.counts = frame.numbers("nonfinite")
        bad = [valid & ~np.isfinite(values) for values, valid in self.curves]
        self.nonfinite = np.logical_or.reduce([*bad, self.counts[1] & (self.counts[0] > 0)])
        scope: Any = pc.dictionary_encode(frame.batch.column("scope"), null_encoding="encode")
        orders = np.array(
            [_SCOPE_ORDER.get(name, len(_SCOPE_ORDER) - 1) for name in scope.dictionary.to_pylist()], np.int64
        )
        self.scopes = orders[scope.indices.to_numpy(zero_copy_only=False)]

    def groups(self) -> Iterator[tuple[str, str, Array]]:
        """Each (job, attempt) of the frame with its row numbers, ascending."""
        jobs: Any = pc.dictionary_encode(self._frame.batch.column("job"))
        attempts: Any = pc.dictionary_encode(self._frame.batch.column("attempt"))
        wide = len(attempts.dictionary)
        codes = jobs.indices.to_numpy(zero_copy_only=False).astype(np.int64) * wide + attempts.indices.to_numpy(
            zero_copy_only=False
        )
        order = np.argsort(codes, kind="stable")
        distinct, starts = np.unique(codes[order], return_index=True)
        for code, at in zip(distinct.tolist(), np.split(order, starts[1:]), strict=True):
            yield jobs.dictionary[code // wide].as_py(), attempts.dictionary[code % wide].as_py(), at

    def region(self, row: int) -> str | None:
        """The region of a row."""
        region: str | None = self._frame.batch.column("region")[int(row)].as_py()
        return region

    def mark(self, row: int) -> Mark:
        """The mark of a row that has a non-finite number."""
        what = [name for name, (v, ok) in zip(COLUMNS, self.curves, strict=True) if ok[row] and not np.isfinite(v[row])]
        if self.counts[1][row] and self.counts[0][row] > 0:
            what.append("gradient")
        parameter: str | None = self._frame.batch.column("first_nonfinite")[row].as_py()
        return Mark(int(self.steps[row]), int(self.ranks[row]), tuple(what), parameter, float(self.times[row]))
