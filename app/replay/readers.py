"""Files of recorded runs: CSV, JSON lines, and the ``trainer_state.json`` of Hugging Face's Trainer.

A row that cannot be read is skipped, counted, and said with its file, line and column; the others are kept. Steps may
go back (a resume) and repeat. An empty cell, ``null`` and a missing key are absent; ``nan``, ``inf`` and ``-inf`` are
values.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.replay.errors import UnreadableRun
from telemetry_bus.json_text import number

MEASURES = ("loss", "grad_norm", "lr", "loss_scale", "nonfinite", "skipped", "step_time_s")
"""The columns besides ``step``; at least one of them must be there."""
FILE_BYTES_MAX = 1 << 30
"""Ten million rows of eight columns; the file is held in memory while it is read."""
PROBLEMS_MAX = 20
"""Problems that are said one by one; all are counted."""
CELL_CHARACTERS_SAID = 40
STEP_MAX = (1 << 63) - 1
"""Steps are int64 on the bus."""
TOO_LARGE = "a number that fits 64 bits (inf and -inf are written out)"
LINE_END = re.compile(r"\r\n|\n|\r")
TRUE, FALSE = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
_TRAINER_KEYS = {"learning_rate": "lr", "loss": "loss", "grad_norm": "grad_norm"}

Value = float | int | bool | None


@dataclass(slots=True)
class Run:
    """The rows of one file. ``columns`` has a list for ``step`` and each measure that the file has (``None``: absent).

    ``rows[i]`` is the number that row ``i`` has in the file, from 0, where the skipped ones count too.
    """

    path: Path
    columns: dict[str, list[Value]]
    rows: list[int] = field(default_factory=list)
    skipped_rows: int = 0
    problems: list[str] = field(default_factory=list)

    def skip(self, problem: str) -> None:
        """Count a row that cannot be read, and remember why."""
        self.skipped_rows += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{self.path}: {problem}")

    def add(self, row: int, values: Mapping[str, Value]) -> None:
        """Take one row."""
        self.rows.append(row)
        for name, column in self.columns.items():
            column.append(values.get(name))


class _Overflowed(str):
    """The digits of a JSON number that is larger than any float: a mistake of the file, and no infinity."""

    __slots__ = ()


class _BadCell(Exception):
    """A value that is not what its column holds."""


def read_run(path: Path) -> Run:
    """Read ``path``, by what is in it. Raises :class:`UnreadableRun` if no run is."""
    text = _text(path)
    if "tfevents" in path.name:
        raise UnreadableRun(
            path, "this is a TensorBoard event file, which is not read yet", "CSV, JSON lines or trainer_state.json"
        )
    if path.suffix == ".csv" or (
        path.suffix not in (".json", ".jsonl", ".ndjson") and not text.lstrip().startswith("{")
    ):
        run = _read_csv(path, text)
    else:
        history = _trainer_history(path, text)
        run = _read_objects(path, text) if history is None else _read_trainer(path, history)
    if not run.rows:
        raise UnreadableRun(
            path, f"no row can be read ({run.skipped_rows} were skipped{_first(run)})", "at least one row"
        )
    return run


def _first(run: Run) -> str:
    return f", the first: {run.problems[0]}" if run.problems else ""


def _text(path: Path) -> str:
    try:
        # Before it is opened: a pipe would keep whoever opens it waiting, and a device may have no end.
        if not (path.is_file() or path.is_dir() or not path.exists()):
            raise UnreadableRun(path, "it is a pipe or a device", "a regular file: copy what comes out of it to one")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UnreadableRun(
            path, f"it cannot be read: {error.strerror or error}", "a file with a recorded run"
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise UnreadableRun(path, f"the file has more than {FILE_BYTES_MAX} bytes", "at most so many")
    if _is_utf16(data):
        raise UnreadableRun(path, "it is UTF-16 text", "UTF-8: iconv -f UTF-16 -t UTF-8 makes it")
    text = data.decode("utf-8-sig", "replace")
    if not text.strip():
        raise UnreadableRun(path, "the file is empty", "a recorded run")
    return text


def _is_utf16(data: bytes) -> bool:
    """By its mark, or because every other byte of its beginning is zero, as it is of ASCII in UTF-16."""
    halves = data[0:32:2], data[1:32:2]
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(halves[1]) > 1 and any(not any(half) for half in halves))


def _read_csv(path: Path, text: str) -> Run:
    # Line by line: a quote that is never closed can cost its own row, never the ones after it.
    lines = ((at_line, line) for at_line, line in enumerate(LINE_END.split(text), start=1) if line.strip())
    names = _header(path, lines)
    known = [name for name in names if name == "step" or name in MEASURES]
    _check_columns(path, names, known)
    places = {name: names.index(name) for name in known}
    run = Run(path, {name: [] for name in known})
    for row, (at_line, line) in enumerate(lines):
        try:
            cells = _cells(line)
        except csv.Error as error:
            run.skip(f"line {at_line}: {error}; the row is skipped")
            continue
        if len(cells) != len(names):
            run.skip(f"line {at_line}: {len(cells)} cells where the header has {len(names)}; the row is skipped")
            continue
        _add(run, row, at_line, {name: cells[at] for name, at in places.items()}, _cell)
    return run


def _cells(line: str) -> list[str]:
    """The cells of one line. Raises ``csv.Error``, also for a quote that the line does not close."""
    return next(csv.reader([line], strict=True))


def _header(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    try:
        return [name.strip() for name in _cells(next(lines)[1])]
    except csv.Error as error:
        raise UnreadableRun(path, f"its first line is not CSV ({error})", "a header") from error


def _check_columns(path: Path, names: list[str], known: list[str]) -> None:
    expected = f"a header with step and at least one of {', '.join(MEASURES)}"
    if "step" not in known or len(known) < 2:
        raise UnreadableRun(path, f"the columns are {', '.join(names)[:200]!r}", expected)
    twice = sorted({name for name in known if names.count(name) > 1})
    if twice:
        raise UnreadableRun(path, f"column {', '.join(twice)} is there more than once", expected)


def _read_objects(path: Path, text: str) -> Run:
    run = Run(path, {name: [] for name in ("step", *MEASURES)})
    row = -1
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        row += 1
        try:
            values = _loads(raw)
        except (ValueError, RecursionError) as error:
            run.skip(f"line {line}: not JSON ({error}); the row is skipped")
            continue
        if not isinstance(values, dict):
            run.skip(f"line {line}: expected a JSON object, found {_said(raw)}; the row is skipped")
            continue
        _add(run, row, line, values, _json_value)
    return run


def _loads(text: str) -> Any:
    """The value of a JSON text. Python's ``NaN`` and ``Infinity`` are taken; a number that overflows
    stays its digits."""

    def parse_float(digits: str) -> Any:
        value = float(digits)
        return _Overflowed(digits) if math.isinf(value) else value

    return json.loads(text, parse_float=parse_float)


def _trainer_history(path: Path, text: str) -> list[Any] | None:
    """The ``log_history`` if the whole text is one such object; ``None`` if it is something else, such as JSON
    lines."""
    try:
        whole = _loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
        return list(whole["log_history"])
    if isinstance(whole, dict) and "step" in whole:
        return None
    raise UnreadableRun(
        path, "a JSON document without log_history", "JSON lines, or a trainer_state.json with log_history"
    )


def _read_trainer(path: Path, history: list[Any]) -> Run:
    """Entries of training; those of an evaluation and the closing summary have neither a loss nor a gradient norm."""
    run = Run(path, {name: [] for name in ("step", *_TRAINER_KEYS.values())})
    for row, entry in enumerate(history):
        if not isinstance(entry, dict):
            run.skip(f"log_history[{row}]: expected an object, found {_said(entry)}; the row is skipped")
        elif "loss" in entry or "grad_norm" in entry:
            values = {
                _TRAINER_KEYS.get(str(name), str(name)): value
                for name, value in entry.items()
                if name in (*_TRAINER_KEYS, "step")
            }
            _add(run, row, row, values, _json_value, place="log_history entry")
    return run


def _add(
    run: Run, row: int, line: int, raw: Mapping[str, Any], parse: Callable[[str, Any], Value], place: str = "line"
) -> None:
    values: dict[str, Value] = {}
    for name in run.columns:
        try:
            values[name] = parse(name, raw.get(name))
        except _BadCell as error:
            run.skip(
                f"{place} {line}, column {name}: expected {error}, found {_said(raw.get(name))}; the row is skipped"
            )
            return
    if values["step"] is None:
        run.skip(f"{place} {line}, column step: expected a whole number, found nothing; the row is skipped")
        return
    run.add(row, values)


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= CELL_CHARACTERS_SAID else f"{text[:CELL_CHARACTERS_SAID]}..."


def _cell(name: str, text: str | None) -> Value:
    text = (text or "").strip()
    if not text:
        return None
    if name == "skipped":
        return _flag(text.lower())
    try:
        if "_" in text:  # Python would take 1_000
            raise ValueError(text)
        value = int(text) if name == "step" and text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise _BadCell("a whole number" if name == "step" else "a number, nan, inf or -inf") from error
    if isinstance(value, float) and math.isinf(value) and any(digit.isdigit() for digit in text):
        raise _BadCell(TOO_LARGE)
    return _whole(value) if name in ("step", "nonfinite") else value


def _json_value(name: str, value: Any) -> Value:
    if value is None:
        return None
    if name == "skipped":
        return _flag(str(value).lower()) if isinstance(value, bool | int | float) else _flag("")
    try:
        if isinstance(value, _Overflowed):
            raise _BadCell(TOO_LARGE)
        found = value if isinstance(value, int) and not isinstance(value, bool) else number(value)
        if found is not None and name not in ("step", "nonfinite"):
            return float(found)
    except (ValueError, OverflowError) as error:
        raise _BadCell('a number, null, "NaN", "Infinity" or "-Infinity"') from error
    return None if found is None else _whole(found)


def _flag(text: str) -> bool:
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise _BadCell("0, 1, true or false")


def _whole(value: float | int) -> int:
    if math.isnan(value) or abs(value) > STEP_MAX or int(value) != value:
        raise _BadCell("a whole number that fits 64 bits")
    return int(value)
