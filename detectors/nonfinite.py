"""nonfinite: a loss, gradient norm or gradient element that is NaN or infinite, at the first step where there is one.

One finding an episode. A row that comes later but tells of an earlier step or microbatch, or proves the place, is said
as a further firing finding (another id, the same kind and ``evidence["episode_step"]``), and so is the number of ranks
affected once the next step has begun. Rank and parameter are named only by rows from before a reduction, or in a world
of one rank.

A step that a loss scaler skipped is how float16 training finds its scale: it is nothing, unless many follow each other
or the scale has come down to one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from detectors.checkpoints import Checkpoints
from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.nonfinite_rows import (
    PRE_REDUCTION,
    Columns,
    Row,
    blank_series,
    columns_of,
    distinct,
    is_bad,
    note_row,
    remember,
    rows_of,
)
from detectors.windows import STEP_LIMIT, JobKey, SeriesTable
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.frames import Array, Frame
from telemetry_bus.schemas import EventKind, FindingState, Scope, Severity
from telemetry_bus.topics import Topic

NAME = "nonfinite"
CLOCKS_SECONDS = 5.0
"""Another rank's row of an earlier step corrects the place only if it was made at most this much later: clocks of
nodes differ by so much before their offset is taken off. Made later still, it is a job that has gone back."""
RANKS_MAX = 16_384
"""Ranks that are counted at the first bad step; beyond them the count stands still (and is a lower bound)."""
COUNT_WAIT_SECONDS = 2.0
"""Where no later step comes, the number of ranks is said after so much silence."""
DEDUPLICATE_ROWS = 256
"""From so many rows of one sick job in a frame on, rows that say the same are looked at once."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Settings. resolve_steps: finite steps in a row that end an episode. skips_in_a_row: skipped steps one after the
    other that are no longer the scaler's search; first_skips: the same before the first step that was applied.
    collapsed_scale: a dynamic loss scale this low has nothing left to give.
    """

    resolve_steps: int = 20
    skips_in_a_row: int = 8
    first_skips: int = 40
    collapsed_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("resolve_steps", "skips_in_a_row", "first_skips"):
            if getattr(self, name) < 1:
                raise WrongSetting(NAME, name, getattr(self, name), "a whole number of at least 1")
        if not (math.isfinite(self.collapsed_scale) and self.collapsed_scale >= 0):
            raise WrongSetting(NAME, "collapsed_scale", self.collapsed_scale, "a finite number that is not negative")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return NonFiniteDetector(self)


@dataclass(slots=True)
class _Episode:
    """What has been said of a job that is sick."""

    first: Row
    begun_step: int
    proven: bool
    why: str
    before: dict[str, float | None]
    world_size: int | None
    ranks: set[int] = field(default_factory=set)
    ranks_said: int = 1
    last_bad: int = 0
    last_finite: int = 0
    finite_steps: int = 0
    begun_time: float = field(init=False)
    """Event time of the row with which it began: the same step may go bad again after a roll-back."""

    def __post_init__(self) -> None:
        self.begun_time = self.first.time

    @property
    def identity(self) -> str:
        """What tells this episode from another of the same attempt, the same whenever the log is read."""
        return f"{self.begun_step}@{self.begun_time:.3f}"


class NonFiniteDetector:
    """See the module's text."""

    name = NAME
    topics = frozenset({Topic.TRAIN, Topic.EVENTS})

    def __init__(self, config: NonFinite) -> None:
        self.config = config
        self.series = SeriesTable(blank_series())
        self.checkpoints = Checkpoints()
        self._episodes: dict[int, _Episode] = {}

    def remember(self, finding: Finding, now: float) -> None:
        """Take up the episode of ``finding``, or give that which is known here its identity."""
        slot = self.series.slot_for((finding.job or "", finding.attempt or ""))
        if slot is None:
            return
        row = _row_of(finding)
        begun = int(finding.evidence.get("episode_step", row.step))
        episode = self._episodes.get(slot)
        if episode is None:
            before = {name: finding.evidence.get(name) for name in ("last_finite_loss", "last_finite_grad_norm")}
            why = str(finding.evidence.get("why", "nonfinite"))
            episode = _Episode(row, begun, finding.rank is not None, why, before, finding.world_size)
            episode.ranks, episode.ranks_said = {row.rank}, max(1, finding.ranks_affected or 1)
            episode.last_bad = max(row.step, row.step if finding.step is None else finding.step)
            self._episodes[slot] = episode
        elif row.step < episode.first.step:
            episode.first, episode.proven = row, finding.rank is not None
        episode.begun_step, episode.begun_time = begun, float(finding.evidence.get("episode_time", row.time))
        self.series.state["open"][slot] = True
        self.series.state["seen"][slot] = max(float(self.series.state["seen"][slot]), now)

    def ended(self, finding: Finding) -> None:
        """Its end is said: what is bad from now on is an episode of its own, and is said."""
        slot = self.series.slot((finding.job or "", finding.attempt or ""))
        episode = None if slot is None else self._episodes.get(slot)
        if slot is not None and episode is not None and episode.begun_time <= finding.time:
            del self._episodes[slot]
            self.series.state["open"][slot] = False

    @np.errstate(all="ignore")  # a job may send any number: comparisons with NaN and products that overflow are meant
    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Look at every row of a frame; rows of healthy jobs are only operations on arrays."""
        if not frame.rows:
            return ()
        if frame.schema_id == "event/1":
            self.checkpoints.observe(frame)
            return self._events(frame)
        return [finding for piece in self.series.pieces(frame) for finding in self._piece(*piece)]

    def _piece(self, frame: Frame, slots: Array, new: list[int]) -> list[Finding]:
        now = float(frame.times()[0])
        said = [(-1, finding) for slot in new for finding in self._superseded(slot, now)]
        bad, columns = columns_of(frame)
        state = self.series.state
        sick = np.zeros(len(state) + 1, dtype=bool)  # the last is for rows without a slot
        sick[:-1] = state["open"] | (state["skips"] > 0)
        sick[slots[bad]] = True
        sick[-1] = False
        sick_rows = sick[slots]
        remember(state, slots, columns, (slots >= 0) & ~sick_rows)
        if sick_rows.any():
            said.extend(self._sick(frame, slots, np.flatnonzero(sick_rows), bad, columns))
        return [finding for _row, finding in sorted(said, key=lambda item: item[0])]

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Say how many ranks were affected where no later step comes, and forget what has been silent for long."""
        found = []
        for slot, episode in self._episodes.items():
            if (
                len(episode.ranks) > episode.ranks_said
                and now - float(self.series.state["seen"][slot]) >= COUNT_WAIT_SECONDS
            ):
                found.append(self._said_again(slot, episode, now, episode.first.step))
        for slot in self.series.silent(now):
            self._episodes.pop(slot, None)
            self.series.free(slot)
        return found

    def _sick(
        self, frame: Frame, slots: Array, at: Array, bad: Array, columns: Columns
    ) -> Iterable[tuple[int, Finding]]:
        order = at[np.argsort(slots[at], kind="stable")]
        begins = np.flatnonzero(np.r_[True, slots[order][1:] != slots[order][:-1]])[1:]
        for part in np.split(order, begins):
            slot, rows = int(slots[part[0]]), part
            if len(part) >= DEDUPLICATE_ROWS:
                episode = self._episodes.get(slot)
                onset = None if episode is None else episode.first.step
                rows = distinct(frame, part, bad, columns, onset, self.series.state[slot])
            for row in rows_of(frame, rows, columns):
                for finding in self._take(slot, row):
                    yield row.at, finding

    def _take(self, slot: int, row: Row) -> list[Finding]:
        """One row of one job, in order."""
        said = []
        episode = self._episodes.get(slot)
        if episode is not None and row.step > episode.first.step and len(episode.ranks) > episode.ranks_said:
            said.append(self._said_again(slot, episode, row.time, row.step))
        note_row(self.series.state, slot, row)
        if not row.bad:
            return said + self._finite(slot, row)
        why = self._why(slot, row)
        if episode is not None:
            return said + self._still_bad(slot, episode, row)
        return said if why is None else [*said, self._begin(slot, row, why)]

    def _why(self, slot: int, row: Row) -> str | None:
        """Why this bad row is trouble; ``None`` for a step that a loss scaler skipped on its search."""
        state = self.series.state
        if not row.overflow:
            return "norm_only" if _norm_only(row) else "nonfinite"
        if row.step != state["skip_step"][slot]:
            state["skips"][slot] += 1
            state["skip_step"][slot] = row.step
        allowed = self.config.skips_in_a_row if state["applied"][slot] else self.config.first_skips
        if state["skips"][slot] >= allowed:
            return "skips"
        low, top = self.config.collapsed_scale, state["scale_top"][slot]
        return "scale" if row.scale is not None and row.scale <= low < top else None

    def _begin(self, slot: int, row: Row, why: str) -> Finding:
        state = self.series.state[slot]
        before = {"last_finite_loss": _known(state["loss"]), "last_finite_grad_norm": _known(state["norm"])}
        world = int(state["world"]) if state["world"] >= 0 else None
        episode = _Episode(row, row.step, self._proves(slot, row), why, before, world, {row.rank}, last_bad=row.step)
        self._episodes[slot] = episode
        self.series.state["open"][slot] = True
        return self._finding(slot, episode, row.time, row.step)

    def _proves(self, slot: int, row: Row) -> bool:
        """Whether the row shows that the trouble was made on its rank."""
        state = self.series.state[slot]
        unknown = state["world"] < 0 and row.scope != Scope.GLOBAL  # who says "global" speaks for others
        alone = state["world"] == 1 or (unknown and state["rank_low"] == state["rank_high"])
        return bool(row.scope in PRE_REDUCTION or alone)

    def _still_bad(self, slot: int, episode: _Episode, row: Row) -> list[Finding]:
        first = episode.first
        if row.step > episode.last_bad:
            episode.last_bad, episode.finite_steps = row.step, 0
        place, known = (row.step, row.microbatch), (first.step, first.microbatch)
        proves = self._proves(slot, row) and not row.overflow
        earlier = (
            place < known and row.rank != first.rank and row.time <= first.time + CLOCKS_SECONDS and not row.overflow
        )
        named = (
            place == known
            and proves
            and (not episode.proven or (first.parameter is None and row.parameter is not None))
        )
        if row.step == first.step:
            _add_ranks(episode, [row.rank])
        if not (earlier or named):
            return []
        if row.step < first.step:
            episode.ranks, episode.ranks_said = {row.rank}, 1
        episode.first, episode.proven = row, proves
        episode.why = "norm_only" if _norm_only(row) else "nonfinite"  # no overflow comes here
        return [self._said_again(slot, episode, row.time, row.step)]

    def _finite(self, slot: int, row: Row) -> list[Finding]:
        state = self.series.state
        if row.says_something and row.step > state["skip_step"][slot]:
            state["skips"][slot], state["applied"][slot] = 0, True
        episode = self._episodes.get(slot)
        if episode is None or not row.says_something:
            return []
        back = (
            row.step < episode.begun_step and row.time > episode.first.time + CLOCKS_SECONDS
        )  # the job went back to a checkpoint
        after = row.step > max(episode.last_bad, episode.last_finite if episode.finite_steps else -STEP_LIMIT)
        if back and not episode.finite_steps:
            episode.last_bad = min(episode.last_bad, row.step - 1)
            after = True
        if after:
            episode.last_finite = row.step
            episode.finite_steps += 1
        if episode.finite_steps < self.config.resolve_steps:
            return []
        words = f"{episode.finite_steps} finite steps in a row"
        return [self._over(slot, row.time, row.step, words)]

    def _over(self, slot: int, now: float, step: int, words: str) -> Finding:
        episode = self._episodes.pop(slot)
        self.series.state["open"][slot] = False
        job, attempt = _key(self.series, slot)
        return Finding(
            id=finding_id(NAME, job, attempt, episode.identity, "resolved", words),
            time=now,
            detector=NAME,
            kind=FindingKind.NONFINITE,
            state=FindingState.RESOLVED,
            severity=Severity.CRITICAL,
            title=f"{job}: numbers are finite again at step {step}" if words[0].isdigit() else f"{job}: {words}",
            message=f"Since step {episode.first.step} they were not; {words}.",
            job=job,
            attempt=attempt,
            step=step,
            onset_step=episode.first.step,
            onset_time=episode.first.time,
            world_size=episode.world_size,
            evidence={"episode_step": episode.begun_step, "finite_steps": episode.finite_steps},
        )

    def _said_again(self, slot: int, episode: _Episode, now: float, step: int) -> Finding:
        episode.ranks_said = len(episode.ranks)
        return self._finding(slot, episode, now, step)

    def _finding(self, slot: int, episode: _Episode, now: float, step: int) -> Finding:
        job, attempt = _key(self.series, slot)
        row, proven = episode.first, episode.proven
        rank, parameter = (row.rank, row.parameter) if proven else (None, None)
        about = (row.step, row.microbatch, rank, parameter, len(episode.ranks))
        title, message = _words(job, episode, self.series.state[slot])
        return Finding(
            id=finding_id(NAME, job, attempt, episode.identity, "firing", *about),
            time=now,
            detector=NAME,
            kind=FindingKind.NONFINITE,
            state=FindingState.FIRING,
            severity=Severity.CRITICAL,
            title=title,
            message=message,
            job=job,
            attempt=attempt,
            node=row.node if proven else None,
            uuid=row.uuid if proven else None,
            rank=rank,
            parameter=parameter,
            step=step,
            onset_step=row.step,
            onset_time=row.time,
            world_size=episode.world_size,
            ranks_affected=len(episode.ranks),
            evidence={
                "episode_step": episode.begun_step,
                "episode_time": episode.begun_time,
                "why": episode.why,
                "loss": row.loss,
                "grad_norm": row.norm,
                "nonfinite": row.count,
                "microbatch": row.microbatch if row.microbatch >= 0 else None,
                "loss_scale": row.scale,
                "skipped": row.skipped,
                "scope": row.scope,
                "skips_in_a_row": int(self.series.state["skips"][slot]),
                **episode.before,
                **self.checkpoints.evidence(job, attempt, row.step),
            },
        )

    def _superseded(self, new_slot: int, now: float) -> list[Finding]:
        """A new attempt of a job ends what is open of those before."""
        job, attempt = _key(self.series, new_slot)
        words = f"attempt {attempt} has begun"
        return [
            self._over(slot, now, self._episodes[slot].last_bad, words)
            for slot in self.series.of_job(job)
            if slot in self._episodes and slot != new_slot
        ]

    def _events(self, frame: Frame) -> list[Finding]:
        """The end of a job ends its trouble."""
        found = []
        for at, kind in enumerate(frame.strings("kind")):
            if kind != EventKind.JOB_END:
                continue
            key = (frame.strings("job")[at] or "", frame.strings("attempt")[at] or "")
            slot = self.series.slot(key)
            if slot is not None and slot in self._episodes:
                found.append(
                    self._over(slot, float(frame.times()[at]), self._episodes[slot].last_bad, "the job has ended")
                )
        return found


def _row_of(finding: Finding) -> Row:
    """The row of which ``finding`` was said, as far as it tells."""
    step = finding.step if finding.onset_step is None else finding.onset_step
    if step is None:
        raise ValueError(f"expected a step in finding {finding.id} of {finding.job}, found none")
    said = finding.evidence
    return Row(
        at=-1,
        time=finding.time if finding.onset_time is None else finding.onset_time,
        step=step,
        microbatch=-1 if said.get("microbatch") is None else int(said["microbatch"]),
        rank=0 if finding.rank is None else finding.rank,
        world_size=finding.world_size,
        loss=_number(said.get("loss")),
        norm=_number(said.get("grad_norm")),
        count=said.get("nonfinite"),
        scale=_number(said.get("loss_scale")),
        skipped=said.get("skipped"),
        scope=said.get("scope"),
        parameter=finding.parameter,
        node=finding.node,
        uuid=finding.uuid,
    )


def _number(value: float | str | None) -> float | None:
    """A number of a finding's evidence, where what is not finite is text."""
    return None if value is None else float(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _norm_only(row: Row) -> bool:
    """The norm's own arithmetic overflowed: the elements were counted, and every one is finite."""
    return row.norm is not None and math.isinf(row.norm) and row.count == 0 and not is_bad(row.loss)


def _key(series: SeriesTable, slot: int) -> JobKey:
    key = series.keys[slot]
    assert key is not None
    return key


def _add_ranks(episode: _Episode, ranks: list[int]) -> None:
    room = RANKS_MAX - len(episode.ranks)
    episode.ranks.update([rank for rank in ranks if rank not in episode.ranks][:room])


def _words(job: str, episode: _Episode, state: np.void) -> tuple[str, str]:
    """A title for somebody who has just been woken, and the numbers."""
    row, proven = episode.first, episode.proven
    where = f" on rank {row.rank}" if proven else ""
    inside = f" in {row.parameter}" if proven and row.parameter is not None else ""
    if episode.why == "skips":
        what = f"{int(state['skips'])} steps in a row were skipped by the loss scaler"
    elif episode.why == "scale":
        what = f"the loss scale has collapsed to {row.scale:g} and gradients still overflow"
    elif episode.why == "norm_only":
        what = "the gradient norm is infinite although every gradient element is finite"
    elif row.count is not None and row.count > 0:
        what = f"non-finite gradient{inside}"
    elif is_bad(row.loss):
        what = f"the loss is {_said(row.loss)}"
    else:
        what = f"the gradient norm is {_said(row.norm)}"
    numbers = (
        f"Loss {_said(row.loss)}, gradient norm {_said(row.norm)}, non-finite gradient elements {_said(row.count)}"
    )
    loss, norm = (_said(episode.before[name]) for name in ("last_finite_loss", "last_finite_grad_norm"))
    before = f"before it loss {loss}, norm {norm}"
    place = "" if proven else " Where it began is not proven: no row from before a reduction has shown it."
    return (
        f"{job}: {what}{where} at step {row.step}",
        f"{numbers}; {before}. Ranks affected so far: {len(episode.ranks)}.{place}",
    )


def _said(value: float | None) -> str:
    if value is None:
        return "not reported"
    if math.isnan(value):
        return "NaN"
    return ("-" if value < 0 else "") + "infinite" if math.isinf(value) else f"{value:.6g}"
