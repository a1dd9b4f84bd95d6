"""DeepSpeed's standard output::

    [2023-04-28 06:51:30,648] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=0, lr=[3e-05], mom=[(0.9, 0.99)]
    steps: 10 loss: 8.5791 iter time (s): 1.213 samples/sec: 26.4
    ... [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768

A line about an overflow has no step of its own: a progress bar in front of it has one, else it is of the step behind
the last one that was told. Of the count of skipped steps, which only grows, its growth is what was skipped since.
"""

import re

from app.follow.step import Step, number_of

_LOGGED = re.compile(r".{0,200}\bstep=(\d{1,15}), skipped=(\d{1,12}), lr=\[([^]]{0,200})\]")
_STEPS = re.compile(r".{0,200}\bsteps: (\d{1,15}) loss: (\S{1,40}) iter time \(s\): (\S{1,40})")
_OVERFLOW = re.compile(
    r"(.{0,300})(?:OVERFLOW!|Overflow detected\.).{0,40}Skipping step.{0,20} loss scale: ([0-9.eE+]{1,40})"
    r"(?:, reducing to ([0-9.eE+]{1,40}))?"
)
PROGRESS = re.compile(r".*?\|\s*(\d{1,15})/\d{1,15} \[")
"""A progress bar of tqdm: ``14%|█▍  | 378/2724 [13:58:09<...``."""


class DeepSpeed:
    """Reads lines; remembers the last step and how many were skipped before it."""

    name = "deepspeed"

    def __init__(self) -> None:
        self._step = 0
        self._skipped: int | None = None

    def line(self, text: str) -> Step | None:
        """The step that a line tells of."""
        if (found := _LOGGED.match(text)) is not None:
            return self._logged(int(found[1]), int(found[2]), found[3])
        if (found := _STEPS.match(text)) is not None:
            step = self._at(int(found[1]))
            step.add("loss", found[2])
            step.add("step_seconds", found[3])
            return step
        if (found := _OVERFLOW.match(text)) is not None:
            shown = PROGRESS.match(found[1])
            step = self._at(int(shown[1]) if shown is not None else self._step + 1)
            step.values["skipped"] = True
            step.add("loss_scale", found[3] or found[2])
            return step
        return None

    def _logged(self, number: int, skipped: int, rates: str) -> Step:
        step = self._at(number)
        rate = number_of(rates.partition(",")[0])
        if rate is not None:
            step.values["lr"] = rate
        if self._skipped is not None and skipped >= self._skipped:
            step.metrics["skipped_iterations"] = float(skipped - self._skipped)
        self._skipped = skipped
        return step

    def _at(self, number: int) -> Step:
        self._step = number
        return Step(number)
