"""Megatron-LM's standard output, and Megatron-DeepSpeed's::

    iteration    120/ 500000 | ... | elapsed time per iteration (ms): 745.3 | lm loss: 2.1E+00 | loss scale: 1.0 | ...

The numbers are averages over the iterations since the last line, behind all reductions. The loss is printed only where
it is above zero: its field is left out where it is NaN (``if avg > 0.0`` in ``training_log``), and the count of NaN
iterations may stay 0. A line without a loss in which not every iteration was skipped, after lines that had one, is
therefore a NaN.
"""

import math
import re

from app.follow.step import Step, number_of

_LINE = re.compile(r"\s*(?:\[[^]]{0,80}\]\s*)?iteration\s+(\d{1,15})\s*/\s*(\d{1,15})\s*\|(.{0,4000})")
_FIELD = re.compile(r"\s*([^:|]{1,60}):\s*([^|\s]{1,40})\s*")
_NAMES = {"lm loss": "loss", "grad norm": "grad_norm", "learning rate": "lr", "loss scale": "loss_scale"}
_ELSEWHERE = frozenset({"elapsed time per iteration (ms)", "number of skipped iterations"})


class Megatron:
    """Reads lines; remembers whether losses are printed, and the iteration before."""

    name = "megatron"

    def __init__(self) -> None:
        self._has_loss = False
        self._last: int | None = None

    def line(self, text: str) -> Step | None:
        """The step that a line tells of."""
        found = _LINE.match(text)
        if found is None:
            return None
        step = Step(int(found[1]), is_last=int(found[1]) == int(found[2]))
        fields = {}
        for part in found[3].split("|"):
            if (cell := _FIELD.match(part)) is not None:
                fields[cell[1].strip()] = cell[2]
        for name, value in fields.items():
            if name not in _ELSEWHERE:
                step.add(_NAMES.get(name, name), value)
        milliseconds = number_of(fields.get("elapsed time per iteration (ms)"))
        if milliseconds is not None:
            step.values["step_seconds"] = milliseconds / 1e3
        self._skips(step, fields)
        self._last = step.number
        return step

    def _skips(self, step: Step, fields: dict[str, str]) -> None:
        skipped = number_of(fields.get("number of skipped iterations"))
        if skipped is not None:
            step.metrics["skipped_iterations"] = skipped
            since = step.number if self._last is None else step.number - self._last
            step.values["skipped"] = skipped >= max(since, 1)
        if "loss" in step.values:
            self._has_loss = True
        elif self._has_loss and not step.values.get("skipped"):
            step.values["loss"] = math.nan
