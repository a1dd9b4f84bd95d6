"""From what a training loop hands to ``run.log`` to rows: which names are columns, which values are numbers.

None of these functions raises for what it is given: a value that cannot be used is named in the problems and left
out, the others are kept. Absent (``None``), zero and NaN are three things: absent is no key at all, NaN is the string
``"NaN"``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

FLOATS = frozenset(
    {"loss", "grad_norm", "update_norm", "loss_scale", "lr", "step_seconds", "data_seconds", "wait_seconds"}
)
COUNTS = {
    "nonfinite": 2**63 - 1,
    "watched_elements": 2**63 - 1,
    "total_elements": 2**63 - 1,
    "tokens": 2**63 - 1,
    "microbatch": 2**31 - 1,
}
"""Columns that count something, with the largest value that the column holds."""
TEXTS = {"first_nonfinite": 512, "phase": 64, "scope": 16}
"""Text columns with their longest text. A parameter's path in the deepest published models has about 150 characters."""
SCOPES = frozenset({"microbatch", "shard", "global"})
COLUMNS = FLOATS | COUNTS.keys() | TEXTS.keys() | {"skipped"}
METRICS_MAX = 512
"""Metrics of one ``log`` call: four norms for each of 128 layers."""
METRIC_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}", re.ASCII)
"""A metric's name: 1 to 128 characters, none of them a control character or half of one."""
STEP_LIMIT = 2**63

Scalar = Union[int, float, bool, str, None]
PLAIN_TYPES = frozenset({int, float, bool, str, type(None)})
"""Types that cannot change after ``log`` has returned, and are taken as they are."""


class Unusable(NamedTuple):
    """Stands for a value of a type that cannot be used."""

    type_name: str


def plain(value: object) -> Scalar | Unusable:
    """The value as a plain Python scalar, now: a numpy scalar or a tensor may change later.

    ``.item()`` or ``float()`` of a tensor on a GPU waits for that GPU: hand over a number that is already on the host.
    """
    if type(value) in PLAIN_TYPES:
        return value  # type: ignore[return-value]  # the test above is of the exact type, which mypy does not follow
    try:
        item = getattr(value, "item", None)
        found = item() if callable(item) else float(value)  # type: ignore[arg-type]  # whatever fails is caught here
    except Exception:  # noqa: BLE001  the object is the job's own and its methods may raise anything
        return Unusable(type(value).__name__)
    return found if type(found) in PLAIN_TYPES else Unusable(type(value).__name__)


class Rows(NamedTuple):
    """What one ``log`` call comes to. ``critical`` says that something in it is non-finite."""

    train: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    critical: bool
    problems: list[str]


def rows_of(now: float, step: object, values: Mapping[str, object]) -> Rows:
    """Split one ``log`` call into its train row and its metric rows.

    A call with nothing but a step is a train row too: it says that the step was made. One whose step cannot be used
    gives no rows, since a row without a step has no place.
    """
    number = _step(step)
    if number is None:
        return Rows(
            None, [], False, [f"step: expected a whole number, found {_shown(step)}; the whole call was left out"]
        )
    train: dict[str, Any] = {}
    metrics: list[dict[str, Any]] = []
    problems: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        if name in COLUMNS:
            converted, problem = _column(name, value)
            if problem is None:
                train[name] = converted
        elif len(metrics) >= METRICS_MAX:
            problem = f"a call of run.log: expected at most {METRICS_MAX} metrics; the others were left out"
        else:
            converted, problem = _metric(name, value)
            if problem is None:
                metrics.append({"time": now, "step": number, "name": name, "value": converted})
        if problem is not None:
            problems.append(problem)
    critical = train.get("nonfinite", 0) > 0 or any(type(train.get(name)) is str for name in FLOATS)
    wanted = bool(train) or not metrics
    return Rows({"time": now, "step": number, **train} if wanted else None, metrics, critical, problems)


def _step(step: object) -> int | None:
    if type(step) is float and step.is_integer():
        step = int(step)
    return step if type(step) is int and -STEP_LIMIT <= step < STEP_LIMIT else None


def _column(name: str, value: object) -> tuple[Scalar, str | None]:
    if name in FLOATS:
        converted = None if type(value) is bool else number_of(value)
        return converted, None if converted is not None else f"{name}: expected a number, found {_shown(value)}"
    if name in COUNTS:
        whole = _step(value)
        if whole is None or not 0 <= whole <= COUNTS[name]:
            return None, f"{name}: expected a whole number from 0 to {COUNTS[name]}, found {_shown(value)}"
        return whole, None
    if name == "skipped":
        usable = type(value) is bool or (type(value) is int and value in (0, 1))
        return bool(value) if usable else None, None if usable else f"skipped: expected a bool, found {_shown(value)}"
    return _text(name, value)


def _text(name: str, value: object) -> tuple[str | None, str | None]:
    if type(value) is not str or not 0 < len(value) <= TEXTS[name]:
        return None, f"{name}: expected a text of 1 to {TEXTS[name]} characters, found {_shown(value)}"
    if name == "scope" and value not in SCOPES:
        return None, f"scope: expected one of {', '.join(sorted(SCOPES))}, found {_shown(value)}"
    return value.encode("utf-8", "replace").decode("utf-8"), None


def _metric(name: object, value: object) -> tuple[float | str | None, str | None]:
    if type(name) is not str or METRIC_NAME.fullmatch(name) is None:
        return None, f"a metric's name: expected 1 to 128 printable characters, found {_shown(name)}"
    number = number_of(value)
    return number, None if number is not None else f"{name}: expected a number, found {_shown(value)}"


def number_of(value: object) -> float | str | None:
    """The value as JSON holds it, or ``None`` if it is no number. A bool is 1.0 or 0.0."""
    if type(value) not in (int, float, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # one of three types that float takes
    except OverflowError:
        return None
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _shown(value: object) -> str:
    """A short picture of an unusable value. Never the ``repr`` of a foreign object, which may do anything."""
    if isinstance(value, Unusable):
        return f"a {value.type_name}"
    if type(value) is str:
        return ascii(value[:40]) + ("..." if len(value) > 40 else "")
    if type(value) is int and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value) if type(value) in PLAIN_TYPES else f"a {type(value).__name__}"
