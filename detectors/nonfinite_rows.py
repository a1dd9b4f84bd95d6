"""Rows of ``train/1`` as the non-finite detector sees them: which are bad, and what healthy ones leave behind."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from detectors.windows import STEP_LIMIT, steps
from telemetry_bus.frames import Array, Frame
from telemetry_bus.schemas import Scope

Columns = dict[str, tuple[Array, Array]]
"""Columns by name, each as ``(values, valid)``."""
PRE_REDUCTION = frozenset({Scope.MICROBATCH.value, Scope.SHARD.value})
"""Scopes whose rows show what one rank has made itself."""


@dataclass(slots=True)
class Row:
    """One row of a job that is sick, or may be."""

    at: int
    time: float
    step: int
    microbatch: int
    rank: int
    world_size: int | None
    loss: float | None
    norm: float | None
    count: int | None
    scale: float | None
    skipped: bool | None
    scope: str | None
    parameter: str | None
    node: str | None
    uuid: str | None

    @property
    def bad(self) -> bool:
        return is_bad(self.loss) or is_bad(self.norm) or (self.count is not None and self.count > 0)

    @property
    def says_something(self) -> bool:
        return self.loss is not None or self.norm is not None or self.count is not None

    @property
    def overflow(self) -> bool:
        """What a loss scaler makes of a non-finite gradient: it skips the step. A non-finite loss is more than that."""
        scaled = self.skipped is True or (self.skipped is None and self.scale is not None)
        return self.bad and scaled and not is_bad(self.loss)


def is_bad(value: float | None) -> bool:
    """A number that is there and is NaN or infinite; an absent one is neither good nor bad."""
    return value is not None and not math.isfinite(value)


def blank_series() -> "np.ndarray[tuple[()], np.dtype[np.void]]":
    """The state of a new series: what its newest finite step showed, its ranks, and the skips of its loss scaler."""
    blank = np.zeros(
        (),
        dtype=[
            ("seen", "f8"),
            ("loss_step", "i8"),
            ("norm_step", "i8"),
            ("loss", "f8"),
            ("norm", "f8"),
            ("scale_top", "f8"),
            ("rank_low", "i8"),
            ("rank_high", "i8"),
            ("world", "i8"),
            ("skips", "i4"),
            ("skip_step", "i8"),
            ("applied", "?"),
            ("open", "?"),
        ],
    )
    blank["loss_step"] = blank["norm_step"] = blank["skip_step"] = -2 * STEP_LIMIT
    blank["loss"] = blank["norm"] = blank["scale_top"] = np.nan
    blank["rank_low"], blank["rank_high"], blank["world"] = 1 << 40, -(1 << 40), -1
    return blank


def columns_of(frame: Frame) -> tuple[Array, Columns]:
    """Which rows are bad, and the columns that are needed for it and for what is remembered."""
    names = ("rank", "world_size", "microbatch", "loss", "grad_norm", "nonfinite", "loss_scale", "skipped")
    columns = {name: frame.numbers(name) for name in names}
    step = steps(frame)
    columns["step"] = (step, np.ones(len(step), dtype=bool))
    seconds = frame.times()
    columns["time"] = (seconds, np.ones(len(step), dtype=bool))
    loss, norm, count = columns["loss"], columns["grad_norm"], columns["nonfinite"]
    bad = (loss[1] & ~np.isfinite(loss[0])) | (norm[1] & ~np.isfinite(norm[0])) | (count[1] & (count[0] > 0))
    return bad, columns


def remember(state: Array, slots: Array, columns: Columns, healthy: Array) -> None:
    """What rows of healthy jobs leave behind: all of them at once. Of each step the first row counts."""
    at = np.flatnonzero(healthy)
    if not len(at):
        return
    slot, step = slots[at], columns["step"][0][at]
    rank = columns["rank"][0][at]
    np.minimum.at(state["rank_low"], slot, rank)
    np.maximum.at(state["rank_high"], slot, rank)
    np.maximum.at(state["seen"], slot, columns["time"][0][at])
    for name, column in (("world", "world_size"), ("scale_top", "loss_scale")):
        values, valid = columns[column][0][at], columns[column][1][at]
        if valid.any():
            np.fmax.at(state[name], slot[valid], values[valid])
    loss, norm, count = (columns[name] for name in ("loss", "grad_norm", "nonfinite"))
    told = loss[1][at] | norm[1][at] | count[1][at]
    state["applied"][slot[told]] = True
    for name, (values, valid) in (("loss", loss), ("norm", norm)):
        newer = np.flatnonzero(valid[at] & (step > state[f"{name}_step"][slot]))
        if len(newer):
            order = newer[np.lexsort((newer, -step[newer], slot[newer]))]
            best = order[np.r_[True, slot[order][1:] != slot[order][:-1]]]
            state[f"{name}_step"][slot[best]], state[name][slot[best]] = step[best], values[at][best]


def note_row(state: Array, slot: int, row: Row) -> None:
    """The same for one row of a sick job."""
    one = state[slot : slot + 1]
    one["rank_low"] = min(int(one["rank_low"][0]), row.rank)
    one["rank_high"] = max(int(one["rank_high"][0]), row.rank)
    if row.world_size is not None:
        one["world"] = max(int(one["world"][0]), row.world_size)
    one["seen"] = max(float(one["seen"][0]), row.time)
    if row.scale is not None:
        one["scale_top"] = np.fmax(one["scale_top"], row.scale)
    for name, value in (("loss", row.loss), ("norm", row.norm)):
        if value is not None and not row.bad and row.step > one[f"{name}_step"][0]:
            one[f"{name}_step"], one[name] = row.step, value


def distinct(frame: Frame, rows: Array, bad: Array, columns: Columns, onset_step: int | None, known: np.void) -> Array:
    """Those of one job's ``rows`` that can change anything, in order.

    Kept are every bad row up to the step where the trouble begins (``onset_step``, or that of the first bad row),
    every row that widens the range of ranks that is ``known`` (the state of the series), and of rows that say the same
    of a later step the first.
    """
    step, rank, (skipped, skipped_valid) = columns["step"][0][rows], columns["rank"][0][rows], columns["skipped"]
    is_bad_row = bad[rows]
    if onset_step is None:
        begins = is_bad_row & ~(skipped_valid & skipped.astype(bool))[rows]
        onset_step = int(step[np.argmax(begins)]) if begins.any() else -STEP_LIMIT - 1
    lower = rank < np.minimum.accumulate(np.r_[known["rank_low"], rank[:-1]])
    higher = rank > np.maximum.accumulate(np.r_[known["rank_high"], rank[:-1]])
    told = columns["loss"][1] * 4 + columns["grad_norm"][1] * 2 + columns["nonfinite"][1]
    loss_bad = columns["loss"][1] & ~np.isfinite(columns["loss"][0])
    what = np.array(
        [step, is_bad_row, np.where(skipped_valid, skipped, 2)[rows], told[rows], loss_bad[rows]], dtype=np.int64
    )
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(what, axis=1, return_index=True)[1]] = True
    early = is_bad_row & (step <= onset_step)
    for value in np.unique(step[early]).tolist():  # the first row of a later step says how many ranks there were
        later = np.flatnonzero(step > value)
        next_at = np.searchsorted(later, np.flatnonzero(early & (step == value)))
        first[later[next_at[next_at < len(later)]]] = True
    kept: Array = first | lower | higher | early
    return np.asarray(rows[kept])


def rows_of(frame: Frame, at: Array, columns: Columns) -> Iterable[Row]:
    """The rows ``at`` as objects: only for the few that matter to a sick job."""
    texts = {name: frame.batch.column(name) for name in ("scope", "first_nonfinite", "node", "uuid")}

    def value(name: str, row: int) -> float | None:
        values, valid = columns[name]
        return float(values[row]) if valid[row] else None

    for row in at.tolist():
        count, microbatch, skipped = value("nonfinite", row), value("microbatch", row), value("skipped", row)
        yield Row(
            row,
            float(columns["time"][0][row]),
            int(columns["step"][0][row]),
            -1 if microbatch is None else int(microbatch),
            int(columns["rank"][0][row]),
            None if (world := value("world_size", row)) is None else int(world),
            value("loss", row),
            value("grad_norm", row),
            None if count is None else int(count),
            value("loss_scale", row),
            None if skipped is None else bool(skipped),
            texts["scope"][row].as_py(),
            texts["first_nonfinite"][row].as_py() or None,
            texts["node"][row].as_py() or None,
            texts["uuid"][row].as_py() or None,
        )
