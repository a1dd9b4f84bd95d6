"""JSON lines: an object a line with ``step`` (or ``iteration``, ``global_step``, ``iter``) and numbers, and
``trainer_state.json``, which is written whole at each checkpoint."""

import json
from collections.abc import Iterator

from app.follow.step import Step, step_from

STEP_NAMES = ("step", "global_step", "iteration", "iter", "_step", "train/step", "train/global_step")


class JsonLines:
    """Reads lines."""

    name = "jsonl"

    def line(self, text: str) -> Step | None:
        """The step that a line tells of."""
        text = text.strip()
        if not text.startswith("{"):
            return None
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return step_of(entry)


def step_of(entry: object) -> Step | None:
    """The step that an object tells of."""
    if not isinstance(entry, dict) or (number := step_from(entry, STEP_NAMES)) is None:
        return None
    step = Step(number)
    for name, value in entry.items():
        if name not in STEP_NAMES:
            step.add(name, value)
    return step


def trainer_steps(text: str) -> Iterator[Step]:
    """The entries of a ``trainer_state.json``. Raises ``ValueError`` where it is not whole: it is being written."""
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise ValueError("expected a JSON document, found one that is nested too deep") from error
    history = whole.get("log_history") if isinstance(whole, dict) else None
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict):
            done = "train_runtime" in entry
            taken = {name: value for name, value in entry.items() if not (done and name == "train_loss")}
            named = {("eval/" + name[5:] if name.startswith("eval_") else name): value for name, value in taken.items()}
            if (step := step_of(named)) is not None:
                step.is_last = done
                yield step
