"""What Hugging Face's ``Trainer`` prints: ``{'loss': 2.163, 'grad_norm': 'nan', 'epoch': 0.35}``.

The line has no step. A progress bar before it has one; without it lines are numbered as they come, from 1. The loss is
an average over ``logging_steps``; where ``logging_nan_inf_filter`` is on, a NaN in it is hidden and only the gradient
tells.
"""

import ast

from app.follow.formats.deepspeed import PROGRESS
from app.follow.step import Step

_ENTRY_MAX = 8_192


class TrainerLines:
    """Reads lines; remembers the step that a progress bar showed last."""

    name = "trainer"

    def __init__(self) -> None:
        self._shown: int | None = None
        self._counted = 0

    def line(self, text: str) -> Step | None:
        """The step that a line tells of."""
        if (shown := PROGRESS.match(text)) is not None:
            self._shown = int(shown[1])
        begin, end = text.find("{'"), text.rfind("}")
        if begin < 0 or end < begin or end - begin > _ENTRY_MAX:
            return None
        entry = _entry(text[begin : end + 1])
        if not (
            entry.keys() & {"loss", "grad_norm", "train_runtime"} or any(name.startswith("eval_") for name in entry)
        ):
            return None
        self._counted += "loss" in entry or "grad_norm" in entry
        step = Step(self._counted if self._shown is None else self._shown, is_last="train_runtime" in entry)
        entry.pop("train_loss", None)  # the whole training's average is no step's loss
        for name, value in entry.items():
            step.add("eval/" + name[5:] if name.startswith("eval_") else name, value)
        return step


def _entry(text: str) -> dict[str, object]:
    """The dictionary that Python printed; ``nan`` and ``inf`` stand in it without quotes."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    if not isinstance(tree, ast.Dict):
        return {}
    found: dict[str, object] = {}
    for key, value in zip(tree.keys, tree.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found[key.value] = _value(value)
    return found


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        return f"-{inner}" if isinstance(inner, str) else -inner if isinstance(inner, int | float) else None
    if isinstance(node, ast.Name):
        return node.id
    return node.value if isinstance(node, ast.Constant) else None
