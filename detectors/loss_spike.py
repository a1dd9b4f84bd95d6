"""loss_spike: a job's loss far above what its run has done before.

The loss is judged on the job's one curve (:class:`~detectors.windows.SeriesTable`), on a scale of ratios, by a robust
centre and upper deviation of its last good rows, which stand still while an incident is open. One bad row is a
warning; several of the last few are a page. A second test of the same kind is held against the best level that the run
has had, so that a loss which climbs slowly, and takes its own window along, is found too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from detectors.checkpoints import Checkpoints
from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.kernels import from_log_like, log_like, ones, robust_levels
from detectors.windows import STEP_LIMIT, SeriesTable, rounds, steps, texts
from telemetry_bus.findings import Finding, FindingKind, finding_id
from telemetry_bus.frames import Array, Frame
from telemetry_bus.schemas import EventKind, FindingState, Scope, Severity
from telemetry_bus.topics import Topic

NAME = "loss_spike"
HANDOVER_STEPS = 50
"""A job's curve is told by its best reporter (global before local, then the lowest rank). When that one has been
silent for so many steps while others went on, the next best takes over."""
UNKNOWN_SCOPE = 1
SCOPE_ORDER: dict[str, int] = {Scope.GLOBAL: 0, Scope.SHARD: 2, Scope.MICROBATCH: 3}
"""Which rows tell the loss of the job best."""
_SCOPE_STRIDE = 1 << 40
_NOBODY = 1 << 60
BITS = 64
"""Length of a history of rows."""
_CALM, _WARNED, _PAGED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class LossSpike:
    """Settings. Deviations are robust ones, of the loss on its scale of ratios.

    window: good rows that make the baseline. warm_up_rows: rows before anything is said. page_deviations and
    page_rows: a page needs so many of the last ``of_rows`` rows above so many deviations. warn_deviations: one row
    above this is a warning. rise_deviations, rise_rows, rise_of_rows: the same for a page against the best level of
    the run. smallest_rise: what is less than this above the centre (0.05 is 5 %) is never bad. calm_rows: rows in band
    that end an incident. adopt_rows: a loss that has stayed high for so long is taken for the new level. restart_rows:
    for so many rows after the learning rate went back up, or the step went back, limits are twice as far away.
    """

    window: int = 128
    warm_up_rows: int = 50
    page_deviations: float = 6.0
    page_rows: int = 3
    of_rows: int = 8
    warn_deviations: float = 8.0
    rise_deviations: float = 5.5
    window_deviations: float = 4.0
    rise_rows: int = 5
    rise_of_rows: int = 16
    smallest_rise: float = 0.05
    calm_rows: int = 50
    warning_calm_rows: int = 10
    adopt_rows: int = 2_000
    refresh_rows: int = 8
    restart_rows: int = 64

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise WrongSetting(NAME, item.name, getattr(self, item.name), "a number above zero")
        if not self.page_rows <= self.of_rows <= BITS or not self.rise_rows <= self.rise_of_rows <= BITS:
            raise WrongSetting(NAME, "of_rows", self.of_rows, "at most 64 and at least page_rows (the same for rise_*)")
        if not self.warm_up_rows <= self.window <= 4_096:
            raise WrongSetting(NAME, "window", self.window, "at least warm_up_rows and at most 4096")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return LossSpikeDetector(self)


def _blank(window: int) -> "np.ndarray[tuple[()], np.dtype[np.void]]":
    """The state of a new series; ``ring`` holds the last good rows on the log-like scale."""
    blank = np.zeros(
        (),
        dtype=[
            ("seen", "f8"),
            ("reporter", "i8"),
            ("step", "i8"),
            ("lr", "f8"),
            ("lr_top", "f8"),
            ("rows", "i8"),
            ("count", "i4"),
            ("at", "i4"),
            ("stale", "i4"),
            ("grace", "i4"),
            ("ring", "f8", (window,)),
            ("centre", "f8"),
            ("spread", "f8"),
            ("top", "f8"),
            ("best", "f8"),
            ("best_spread", "f8"),
            ("high", "u8"),
            ("risen", "u8"),
            ("phase", "i1"),
            ("calm", "i4"),
            ("held", "i4"),
            ("onset_step", "i8"),
            ("onset_time", "f8"),
            ("last_good", "f8"),
        ],
    )
    blank["reporter"], blank["step"] = _NOBODY, -2 * STEP_LIMIT
    blank["ring"] = np.nan
    for name in ("lr", "lr_top", "best", "best_spread", "last_good", "centre", "spread", "top"):
        blank[name] = np.nan
    return blank


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a frame that may tell a loss, as arrays of one length."""

    row: Array
    slot: Array
    priority: Array
    step: Array
    time: Array
    loss: Array
    x: Array
    lr: Array

    def take(self, at: Array) -> "_Rows":
        return _Rows(*(getattr(self, item.name)[at] for item in fields(self)))


class LossSpikeDetector:
    """See the module's text."""

    name = NAME
    topics = frozenset({Topic.TRAIN, Topic.EVENTS})

    def __init__(self, config: LossSpike) -> None:
        self.config = config
        self.series = SeriesTable(_blank(config.window))
        self.checkpoints = Checkpoints()

    def remember(self, finding: Finding, now: float) -> None:
        """Take up the incident of ``finding``, with the level from which the loss had risen."""
        slot = self.series.slot_for((finding.job or "", finding.attempt or ""))
        if slot is None:
            return
        series = self.series.state[slot : slot + 1]
        paged = finding.severity is Severity.CRITICAL or int(series["phase"][0]) == _PAGED
        if finding.onset_step is not None and not (series["phase"][0] != _CALM and self._same(series[0], finding)):
            _restore_level(series, finding.evidence, self.config)
            series["onset_step"] = finding.onset_step
            series["onset_time"] = finding.time if finding.onset_time is None else finding.onset_time
        series["phase"] = _PAGED if paged else _WARNED
        series["seen"] = np.maximum(series["seen"], now)

    @staticmethod
    def _same(series: np.void, finding: Finding) -> bool:
        return int(series["onset_step"]) == finding.onset_step

    @np.errstate(all="ignore")  # a job may send any number: comparisons with NaN and products that overflow are meant
    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Judge the losses of a frame, each job's in their order."""
        if not frame.rows:
            return ()
        if frame.schema_id == "event/1":
            self.checkpoints.observe(frame)
            return self._events(frame)
        return [finding for piece in self.series.pieces(frame) for finding in self._piece(*piece)]

    def _piece(self, frame: Frame, slots: Array, new: list[int]) -> list[Finding]:
        said = [(-1, finding) for slot in new for finding in self._superseded(slot, float(frame.times()[0]))]
        rows = self._rows(frame, slots)
        if len(rows.row) > 1 and (rows.slot == rows.slot[0]).all():
            said.extend(self._one_job(rows))
        else:
            for part in rounds(rows.slot) if len(rows.row) else ():
                said.extend(self._round(rows.take(part)))
        return [finding for _row, finding in sorted(said, key=lambda item: item[0])]

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Forget what has been silent for long."""
        for slot in self.series.silent(now):
            self.series.free(slot)
        return ()

    def _rows(self, frame: Frame, slots: Array) -> _Rows:
        """The rows that tell a finite loss and come from their job's reporter, or may take its place."""
        loss, valid = frame.numbers("loss")
        step, state = steps(frame), self.series.state
        scopes, codes = texts(frame, "scope")
        scope = np.array([SCOPE_ORDER.get(name, UNKNOWN_SCOPE) for name in scopes], dtype=np.int64)[codes]
        priority = scope * _SCOPE_STRIDE + frame.numbers("rank")[0]
        known = state[["reporter", "step"]][slots]
        may_tell = (priority <= known["reporter"]) | (step > known["step"] + HANDOVER_STEPS)
        at = np.flatnonzero(valid & np.isfinite(loss) & (slots >= 0) & may_tell)
        lr, lr_valid = frame.numbers("lr")
        lr = np.where(lr_valid & np.isfinite(lr), lr, np.nan)
        taken = loss[at]
        return _Rows(at, slots[at], priority[at], step[at], frame.times()[at], taken, log_like(taken), lr[at])

    def _one_job(self, rows: _Rows) -> list[tuple[int, Finding]]:
        """Judge many rows of one job: calm stretches at once, and whatever is not plain as a round of its own."""
        said: list[tuple[int, Finding]] = []
        at, slot = 0, int(rows.slot[0])
        while at < len(rows.row):
            calm = _calm_rows(self.series.state[slot], rows, at, self.config)
            if calm:
                _learn_calm(self.series.state[slot : slot + 1], rows, at, at + calm, self.config)
                at += calm
            else:
                said.extend(self._round(rows.take(np.array([at]))))
                at += 1
        return said

    def _round(self, rows: _Rows) -> list[tuple[int, Finding]]:
        """Judge at most one row of each job."""
        state, config = self.series.state, self.config
        known = state[["reporter", "step"]][rows.slot]
        told = (rows.priority <= known["reporter"]) | (rows.step > known["step"] + HANDOVER_STEPS)
        if not told.all():
            rows = rows.take(np.flatnonzero(told))
            if not len(rows.row):
                return []
        slot = rows.slot
        now = state[slot]
        _note_restarts(now, rows, config)
        high, risen, extreme = _judge(now, rows, config)
        changed = _advance(now, rows, high, risen, extreme, config)
        _learn(now, rows, high, config)
        state[slot] = now
        return [(int(rows.row[at]), self._say(now[at], rows, at, before, after)) for at, before, after in changed]

    def _say(self, series: np.void, rows: _Rows, at: int, before: int, what: int) -> Finding:
        job, attempt = self.series.keys[int(rows.slot[at])] or ("", "")
        loss, step = float(rows.loss[at]), int(rows.step[at])
        usual = from_log_like(float(series["centre"]))
        onset = int(series["onset_step"])
        spread = float(series["spread"])
        deviations = float(rows.x[at] - series["centre"]) / spread if spread > 0 else math.inf
        evidence = {
            "loss": loss,
            "usual_loss": usual,
            "deviations": round(deviations, 2),
            "last_good_loss": float(series["last_good"]),
            "limit_loss": from_log_like(_limit(series, self.config)),
            "best_loss": from_log_like(float(series["best"])),
            "high_rows": int(ones(series["high"])),
            "of_rows": self.config.of_rows,
            "lr": None if np.isnan(rows.lr[at]) else float(rows.lr[at]),
        }
        severity = Severity.CRITICAL if _PAGED in (before, what) else Severity.WARNING
        title, message = _words(job, step, onset, what, evidence)
        return Finding(
            id=finding_id(
                NAME, job, attempt, _episode(series), severity.value, "resolved" if what == _CALM else "firing", step
            ),
            time=float(rows.time[at]),
            detector=NAME,
            kind=FindingKind.LOSS_SPIKE,
            state=FindingState.RESOLVED if what == _CALM else FindingState.FIRING,
            severity=severity,
            title=title,
            message=message,
            job=job,
            attempt=attempt,
            step=step,
            onset_step=onset,
            onset_time=float(series["onset_time"]),
            evidence={**evidence, **self.checkpoints.evidence(job, attempt, onset)},
        )

    def _superseded(self, new_slot: int, now: float) -> list[Finding]:
        """A new attempt of a job ends the open incidents of those before."""
        key = self.series.keys[new_slot]
        assert key is not None
        found = []
        for slot in self.series.of_job(key[0]):
            old_key = self.series.keys[slot]
            if slot != new_slot and old_key is not None:
                title = f"{key[0]}: attempt {key[1]} has begun; the loss spike of attempt {old_key[1]} is over"
                found.extend(self._over(slot, now, title, {"superseded_by": key[1]}))
        return found

    def _events(self, frame: Frame) -> list[Finding]:
        """The end of a job ends its trouble."""
        found: list[Finding] = []
        kinds, jobs, attempts = frame.strings("kind"), frame.strings("job"), frame.strings("attempt")
        for at, kind in enumerate(kinds):
            slot = self.series.slot((jobs[at] or "", attempts[at] or "")) if kind == EventKind.JOB_END else None
            if slot is not None:
                title = f"{jobs[at]}: the job has ended, and its loss spike with it"
                found.extend(self._over(slot, float(frame.times()[at]), title, {"ended": True}))
        return found

    def _over(self, slot: int, now: float, title: str, evidence: dict[str, object]) -> list[Finding]:
        """The end of a spike whose job goes on no more; nothing where none was said."""
        series, key = self.series.state[slot], self.series.keys[slot]
        if key is None or series["phase"] == _CALM:
            return []
        severity = Severity.CRITICAL if series["phase"] == _PAGED else Severity.WARNING
        found = Finding(
            id=finding_id(NAME, *key, _episode(series), severity.value, "resolved", *evidence.values()),
            time=now,
            detector=NAME,
            kind=FindingKind.LOSS_SPIKE,
            state=FindingState.RESOLVED,
            severity=severity,
            title=title,
            job=key[0],
            attempt=key[1],
            step=int(series["step"]),
            onset_step=int(series["onset_step"]),
            onset_time=float(series["onset_time"]),
            evidence=evidence,
        )
        self.series.state["phase"][slot] = _CALM
        return [found]


def _calm_rows(series: np.void, rows: _Rows, at: int, config: LossSpike) -> int:
    """How many rows from ``at`` on, up to the next refresh of the levels, are plain: from the reporter, forward, in
    band.

    Until that refresh the limits stand still, so that these rows can be judged and learnt at once; that gives exactly
    what rounds of one row give.
    """
    count, grace = int(series["count"]), int(series["grace"])
    room = min(config.refresh_rows - int(series["stale"]), BITS - 1)
    if count < config.warm_up_rows:
        room = min(room, config.warm_up_rows - count)
    if grace:
        room = min(room, grace - 1)  # the last row of a grace is judged by itself
    if series["phase"] != _CALM or series["rows"] == 0 or room < 2:
        return 0
    part = slice(at, min(at + room, len(rows.row)))
    step, lr = rows.step[part], rows.lr[part]
    plain = (rows.priority[part] == series["reporter"]) & (step >= np.r_[series["step"], step[:-1]])
    plain &= ~(lr > 2.0 * np.r_[series["lr"], lr[:-1]]) & (np.isnan(lr) == np.isnan(series["lr"]))
    if count >= config.warm_up_rows:
        plain &= ~(rows.x[part] > np.fmin(_limit(series, config), _rise_limit(series, config)))
    return len(plain) if plain.all() else int(np.argmin(plain))


def _learn_calm(now: Array, rows: _Rows, begin: int, end: int, config: LossSpike) -> None:
    """Take the plain rows from ``begin`` to ``end``: what :func:`_note_restarts`, :func:`_advance` and :func:`_learn`
    do to each."""
    number = end - begin
    now["grace"] = np.maximum(now["grace"] - number, 0)
    lr = rows.lr[begin:end]
    if not np.isnan(lr[-1]):
        now["lr"] = lr[-1]
        now["lr_top"] = np.fmax(now["lr_top"], np.fmax.reduce(lr))
    now["step"], now["rows"] = rows.step[end - 1], now["rows"] + number
    now["seen"] = np.maximum(now["seen"], rows.time[begin:end].max())
    for name, size in (("high", config.of_rows), ("risen", config.rise_of_rows)):
        now[name] = (now[name] << np.uint64(number)) & np.uint64((1 << size) - 1)
    now["calm"], now["held"] = now["calm"] + number, 0
    places = (int(now["at"][0]) + np.arange(number)) % config.window
    now["ring"][0, places] = rows.x[begin:end]
    now["last_good"], now["at"] = rows.loss[end - 1], (now["at"] + number) % config.window
    now["count"], now["stale"] = np.minimum(now["count"] + number, config.window), now["stale"] + number
    _refresh(now, np.zeros(1, dtype=np.intp), config)


def _note_restarts(now: Array, rows: _Rows, config: LossSpike) -> None:
    """A learning rate that goes back up to where it was, or a step that goes back, makes limits wider for a while.

    A learning rate beyond any that the run has had is no restart: it is a likely cause.
    """
    restart = (rows.lr > 2.0 * now["lr"]) & (rows.lr <= 1.05 * now["lr_top"])
    back = (rows.step < now["step"]) & (now["rows"] > 0)
    now["grace"] = np.where(restart | back, config.restart_rows, np.maximum(now["grace"] - 1, 0))
    now["high"][back], now["risen"][back] = 0, 0
    now["lr"] = np.where(np.isnan(rows.lr), now["lr"], rows.lr)
    now["lr_top"] = np.fmax(now["lr_top"], rows.lr)
    now["reporter"], now["step"], now["seen"] = rows.priority, rows.step, np.maximum(now["seen"], rows.time)
    now["rows"] += 1


def _limit(series: Any, config: LossSpike) -> Any:
    """Above this, on the log-like scale, a row is high."""
    wider = np.where(series["grace"] > 0, 2.0, 1.0)
    return series["centre"] + wider * np.maximum(
        config.page_deviations * series["spread"], np.log1p(config.smallest_rise)
    )


def _rise_limit(series: Any, config: LossSpike) -> Any:
    """Above this a row counts towards a rise: far above the best level that the run has had (once one is known), or
    above every row of the window and clearly above its centre.
    """
    wider = np.where(series["grace"] > 0, 2.0, 1.0)
    floor = np.log1p(config.smallest_rise)
    best = series["best"] + wider * np.maximum(config.rise_deviations * series["best_spread"], floor)
    window = series["centre"] + wider * np.maximum(config.window_deviations * series["spread"], floor)
    return np.fmin(best, np.maximum(window, series["top"]))


def _judge(now: Array, rows: _Rows, config: LossSpike) -> tuple[Array, Array, Array]:
    """Which rows are high, which are high against the run's best level, and which are a warning on their own."""
    warm = now["count"] >= config.warm_up_rows
    wider = np.where(now["grace"] > 0, 2.0, 1.0)
    floor = np.log1p(config.smallest_rise)
    high = warm & (rows.x > _limit(now, config))
    risen = warm & (high | (rows.x > _rise_limit(now, config)))
    alone = np.maximum(config.warn_deviations * now["spread"], now["top"] - now["centre"] + 2.0 * now["spread"])
    extreme = high & (rows.x > now["centre"] + wider * np.maximum(alone, 2.0 * floor))
    return high, risen, extreme


def _advance(
    now: Array, rows: _Rows, high: Array, risen: Array, extreme: Array, config: LossSpike
) -> list[tuple[int, int, int]]:
    """Move every series between calm, warned and paged: those that changed, each with its phase before and after."""
    one = np.uint64(1)
    now["high"] = ((now["high"] << one) | high.astype(np.uint64)) & np.uint64((1 << config.of_rows) - 1)
    now["risen"] = ((now["risen"] << one) | risen.astype(np.uint64)) & np.uint64((1 << config.rise_of_rows) - 1)
    page = (high & (ones(now["high"]) >= config.page_rows)) | (risen & (ones(now["risen"]) >= config.rise_rows))
    before = now["phase"].copy()
    bad = high | risen
    now["calm"] = np.where(bad, 0, now["calm"] + 1)
    now["held"] = np.where(before == _CALM, 0, now["held"] + 1)
    quiet = np.where(before == _PAGED, config.calm_rows, config.warning_calm_rows)
    over = (before != _CALM) & ((now["calm"] >= quiet) | (now["held"] >= config.adopt_rows))
    after = np.where(over, _CALM, np.where(page, _PAGED, np.where(extreme, np.maximum(before, _WARNED), before)))
    first_bad = bad & (before == _CALM) & (ones(now["high"] | now["risen"]) == 1)
    now["onset_step"] = np.where(first_bad, rows.step, now["onset_step"])
    now["onset_time"] = np.where(first_bad, rows.time, now["onset_time"])
    now["phase"] = after
    changes = np.flatnonzero(before != after)
    if not len(changes):
        return []
    said = [(int(at), int(before[at]), int(after[at])) for at in changes]
    adopted = over & (now["calm"] < quiet)
    for name, blank in (("count", 0), ("at", 0), ("stale", 0), ("ring", np.nan), ("best", np.nan)):
        now[name][adopted] = blank
    now["high"][over], now["risen"][over] = 0, 0
    return said


def _learn(now: Array, rows: _Rows, high: Array, config: LossSpike) -> None:
    """Put good rows into the baseline, which stands still during an incident, and refresh the levels now and then."""
    good = ~high & (now["phase"] == _CALM)
    at = np.flatnonzero(good)
    if not len(at):
        return
    now["ring"][at, now["at"][at]] = rows.x[at]
    now["last_good"][at] = rows.loss[at]
    now["at"][at] = (now["at"][at] + 1) % config.window
    now["count"][at] = np.minimum(now["count"][at] + 1, config.window)
    now["stale"][at] += 1
    _refresh(now, at, config)


def _refresh(now: Array, at: Array, config: LossSpike) -> None:
    """Measure the levels anew where enough good rows have come since the last time."""
    due = at[(now["stale"][at] >= config.refresh_rows) & (now["count"][at] >= config.refresh_rows)]
    if not len(due):
        return
    counts = now["count"][due]
    live = np.arange(config.window) < counts[:, None]
    centre, spread, top = robust_levels(np.where(live, now["ring"][due], np.nan), counts)
    now["centre"][due], now["spread"][due], now["top"][due], now["stale"][due] = centre, spread, top, 0
    full = counts == config.window
    lower = full & ~(centre >= now["best"][due])
    now["best"][due[lower]], now["best_spread"][due[lower]] = centre[lower], spread[lower]


def _restore_level(series: Array, evidence: Mapping[str, Any], config: LossSpike) -> None:
    """Set the baseline to the level that a finding tells: ``usual_loss``, and ``limit_loss`` from which the deviation
    follows (a limit that was wider for a while gives a wider one). Good rows replace it one by one afterwards."""
    usual, limit, best = (float(evidence[name]) for name in ("usual_loss", "limit_loss", "best_loss"))
    if not (math.isfinite(usual) and math.isfinite(limit)):
        return
    centre = log_like(np.array(usual))
    spread = np.maximum(log_like(np.array(limit)) - centre, 0.0) / config.page_deviations
    count = config.warm_up_rows
    ring = np.full(config.window, np.nan)
    ring[:count] = centre + spread * 1.2816 * np.linspace(-1.25, 1.25, count)  # nine in ten below 1.2816 deviations
    series["ring"], series["count"], series["at"], series["stale"] = ring, count, count % config.window, 0
    series["centre"], series["spread"], series["top"] = centre, spread, np.nanmax(ring)
    if math.isfinite(best):
        series["best"], series["best_spread"] = log_like(np.array(best)), spread
    series["calm"], series["held"], series["high"], series["risen"] = 0, 0, 0, 0


def _episode(series: np.void) -> str:
    """What tells a spike from another of the same attempt: after a roll-back the same step may spike again."""
    return f"{int(series['onset_step'])}@{float(series['onset_time']):.3f}"


def _words(job: str, step: int, onset: int, what: int, evidence: Mapping[str, Any]) -> tuple[str, str]:
    loss, usual = evidence["loss"], evidence["usual_loss"]
    numbers = f"the loss is {loss:.4g}; its usual level is {usual:.4g} and {evidence['limit_loss']:.4g} is the limit"
    if what == _CALM:
        return f"{job}: the loss is back in band at step {step}", f"Since step {onset} it was high; now {numbers}."
    if what == _WARNED:
        return f"{job}: the loss jumped to {loss:.4g} at step {step}", f"One row so far: {numbers}."
    return (
        f"{job}: loss spike since step {onset}, {loss:.4g} at step {step} where {usual:.4g} is usual",
        f"{evidence['high_rows']} of the last {evidence['of_rows']} rows are high: {numbers}.",
    )
