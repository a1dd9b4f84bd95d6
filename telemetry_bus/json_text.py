"""JSON in which a NaN is not lost: non-finite numbers are the strings "NaN", "Infinity" and "-Infinity"."""

import json
import math
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """``value`` with every non-finite float replaced by its string, containers rebuilt."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def dumps(value: Any) -> str:
    """Compact, strict JSON of ``value``."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def number(value: Any) -> float | None:
    """A JSON number, ``None``, or one of the three strings, as a float; else (booleans too) a ``ValueError``."""
    if value is None:
        return None
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(
                f"expected a number below 1.8e308, found an integer of {value.bit_length()} bits"
            ) from error
    raise ValueError(f'expected a number, null, "NaN", "Infinity" or "-Infinity", found {value!r}')
