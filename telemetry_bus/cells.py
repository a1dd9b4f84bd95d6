"""Cells of a job's rows as JSON brings them: JSON values in, what stands in the column out, or what was expected.

The SDK's wire and the gateway's JSON hold the same bounds, because both take them from here.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from telemetry_bus.json_text import NON_FINITE, dumps
from telemetry_bus.schemas import Scope

TIME_MAX = 4_102_444_800.0
"""The year 2100, in UTC seconds; a clock that is wrong by less is the reader's to correct."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,95}")
"""A job or an attempt: ``job/attempt/rank/stream`` is a source of the bus, which has at most 256 bytes."""
METRIC_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
DETAIL_BYTES_MAX = 32 * 1024
"""Half of what a cell of a frame may hold: the stack of a hung rank."""
IDENTITY_BYTES_MAX = 253
"""UTF-8 bytes of a role, node, region or GPU UUID, as of a host's name: every row of the process repeats all four."""
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

Check = Callable[[object], Any]
"""Takes a JSON value and gives what stands in the column; raises ``ValueError`` with what was expected and found."""


def utc_seconds(value: object) -> float:
    """A time from 1970 to 2100, UTC seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= TIME_MAX:
        raise ValueError(f"expected UTC seconds from 0 to {TIME_MAX:.0f}, found {shown(value)}")
    return float(value)


def number(value: object) -> float:
    """A finite JSON number, or one of the three strings that stand for the others; ``true`` is none."""
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            converted = float(value)
        except OverflowError:
            converted = math.inf
        if math.isfinite(converted):
            return converted
    raise ValueError(f'expected a finite number, "NaN", "Infinity" or "-Infinity", found {shown(value)}')


def step(value: object) -> int:
    """A whole number of 64 bits."""
    if type(value) is not int or not -INT64_MAX <= value <= INT64_MAX:
        raise ValueError(f"expected a whole number of 64 bits, found {shown(value)}")
    return value


def count(most: int) -> Callable[[object], int]:
    """A whole number from 0 to ``most``."""

    def check(value: object) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"expected a whole number from 0 to {most}, found {shown(value)}")
        return value

    return check


def boolean(value: object) -> bool:
    """``true`` or ``false``, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {shown(value)}")
    return value


def identity_text(longest: int) -> Callable[[object], str]:
    """A text that every row of a process repeats: bounded in the bytes that it takes in each."""
    characters = text(longest)

    def check(value: object) -> str:
        checked = characters(value)
        if (size := len(checked.encode())) > longest:
            raise ValueError(f"expected a text of at most {longest} bytes in UTF-8, found {size}")
        return checked

    return check


def text(longest: int) -> Callable[[object], str]:
    """A text of 1 to ``longest`` characters that UTF-8 can hold."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            raise ValueError(f"expected a text of 1 to {longest} characters, found {shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("expected Unicode text, found half of a surrogate pair") from error
        return value

    return check


def one_of(allowed: frozenset[str]) -> Callable[[object], str]:
    """One of a closed set of words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"expected one of {', '.join(sorted(allowed))}, found {shown(value)}")
        return value

    return check


def metric_name(value: object) -> str:
    """A metric's name: 1 to 128 characters, none of them a control character."""
    name = _NAME_TEXT(value)
    if METRIC_NAME.fullmatch(name) is None:
        raise ValueError(f"expected 1 to 128 characters without control characters, found {shown(value)}")
    return name


def detail(value: object) -> str:
    """A JSON object, as the text that stands in the cell."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {shown(value)}")
    try:
        written = dumps(value)
        size = len(written.encode())
    except (UnicodeEncodeError, RecursionError) as error:
        raise ValueError("expected a JSON object of Unicode text, found one that cannot be written") from error
    if size > DETAIL_BYTES_MAX:
        raise ValueError(f"expected a JSON object of at most {DETAIL_BYTES_MAX} bytes, found {size}")
    return written


def shown(value: object) -> str:
    """What was found, short enough for a message."""
    if isinstance(value, str):
        return ascii(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return repr(value)
    names: dict[type, str] = {type(None): "nothing", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


_NAME_TEXT = text(128)

IDENTITY_CELLS: Mapping[str, Check] = {
    "world_size": count(INT32_MAX),
    "role": identity_text(IDENTITY_BYTES_MAX),
    "node": identity_text(IDENTITY_BYTES_MAX),
    "region": identity_text(IDENTITY_BYTES_MAX),
    "uuid": identity_text(IDENTITY_BYTES_MAX),
    "dp": count(INT32_MAX),
    "tp": count(INT32_MAX),
    "pp": count(INT32_MAX),
    "ep": count(INT32_MAX),
}
"""What all rows of one process share, beside its job, attempt and rank."""
TRAIN_CELLS: Mapping[str, Check] = {
    "time": utc_seconds,
    "step": step,
    "microbatch": count(INT32_MAX),
    "phase": text(64),
    "scope": one_of(frozenset(Scope)),
    "loss": number,
    "grad_norm": number,
    "update_norm": number,
    "nonfinite": count(INT64_MAX),
    "watched_elements": count(INT64_MAX),
    "total_elements": count(INT64_MAX),
    "first_nonfinite": text(512),
    "loss_scale": number,
    "skipped": boolean,
    "lr": number,
    "tokens": count(INT64_MAX),
    "step_seconds": number,
    "data_seconds": number,
    "wait_seconds": number,
}
"""What one row of ``train/1`` says of a step."""
METRIC_CELLS: Mapping[str, Check] = {
    "time": utc_seconds,
    "step": step,
    "name": metric_name,
    "layer": text(512),
    "value": number,
}
"""What one row of ``metric/1`` says."""
