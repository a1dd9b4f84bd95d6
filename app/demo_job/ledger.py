"""The job's own account of what happened, written before anybody is told.

The ledger is the witness that the page is compared with: JSON lines in a file, each of them on the disk (``fsync``)
before the call returns. It has nothing to do with the SDK, which may lose, delay or garble what it is given without
touching the ledger.

Lines, in order, each with its ``event``: ``start`` (the configuration), ``nonfinite`` (at most once: the first step
with a non-finite loss or gradient element) and ``end`` (how many steps were run). Non-finite numbers are the strings
"NaN", "Infinity" and "-Infinity"; null is absent.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

Value: TypeAlias = str | int | float | None
Event: TypeAlias = Literal["start", "nonfinite", "end"]


class Ledger:
    """Appends lines to ``path``, which is made if it is not there; a context manager that closes the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: Event, values: Mapping[str, Value]) -> None:
        """Append one line and return when it is durable.

        The line is stamped here: ``time_unix`` (seconds) and ``monotonic_ns``, which on Linux two processes of one
        machine may compare. Both are taken before the write, so that the time it takes counts as part of what
        follows.
        """
        stamps = {"time_unix": time.time(), "monotonic_ns": time.monotonic_ns()}
        line = {"event": event} | {name: _plain(value) for name, value in values.items()} | stamps
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _plain(value: Value) -> Value:
    """``value`` as JSON can hold it: non-finite numbers as their names."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
