"""What one entry of a job's own output says about a step: the same from every format."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COLUMNS = {
    "loss": ("loss", "train_loss", "lm_loss", "training_loss", "total_loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "grad_norm_total", "total_grad_norm", "global_grad_norm"),
    "lr": ("lr", "learning_rate"),
    "loss_scale": ("loss_scale",),
    "nonfinite": ("nonfinite",),
    "step_seconds": ("step_seconds", "step_time_s", "step_time"),
    "tokens": ("tokens",),
    "skipped": ("skipped",),
}
"""Columns of ``train/1`` by the names that jobs give them, behind the last ``/`` and with ``_`` for anything else."""
COLUMN_OF = {name: column for column, names in COLUMNS.items() for name in names}
TRAINING = re.compile(r"(train|training|lm[-_ ]loss[-_ ]training|.*-training)/|[^/]*$")
"""A name under ``eval/`` or ``val/`` is no loss of the training, whatever its last part."""
NAME_CHARACTERS_MAX = 128
NUMBERS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}


@dataclass(slots=True)
class Step:
    """One entry. ``values`` are columns of ``train/1``, ``metrics`` everything else that is a number."""

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    is_last: bool = False
    """Whether the job says that it is done: nothing that follows is missing."""

    def add(self, name: str, value: object) -> None:
        """Take a number under the name that the job gave it. What is none is passed over."""
        found = number_of(value)
        if found is None:
            return
        column = column_of(name)
        if column is None:
            self.metrics[name[:NAME_CHARACTERS_MAX]] = found
        elif column in ("nonfinite", "tokens"):
            if math.isfinite(found):
                self.values[column] = int(found)
        elif column == "skipped":
            self.values[column] = bool(found)
        else:
            self.values[column] = found

    def merge(self, other: "Step") -> None:
        """Take what another entry says of the same step."""
        self.values.update(other.values)
        self.metrics.update(other.metrics)

    def __bool__(self) -> bool:
        return bool(self.values or self.metrics or self.is_last)


def column_of(name: str) -> str | None:
    """The column that a job's name stands for."""
    if TRAINING.match(name.lower()) is None:
        return None
    return COLUMN_OF.get(re.sub(r"[^a-z0-9]+", "_", name.lower().rpartition("/")[2]).strip("_"))


def number_of(value: object) -> float | None:
    """The number that ``value`` is or spells; ``None`` where it is none. NaN and infinities are numbers."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if not isinstance(value, str) or len(value) > 64 or "_" in value:
        return None
    text = value.strip().lower()
    if text in NUMBERS:
        return NUMBERS[text]
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def whole_of(value: object) -> int | None:
    """The whole number that ``value`` is or spells."""
    found = number_of(value)
    return None if found is None or not math.isfinite(found) or found != int(found) else int(found)


def step_from(entries: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The step's number among ``entries``, under the first of ``names`` that has one."""
    for name in names:
        if (found := whole_of(entries.get(name))) is not None:
            return found
    return None
