"""Training rows as JSON, for jobs without the SDK: a body in, checked rows out. No I/O.

The bounds are the SDK's (telemetry_bus/cells.py). A request is taken whole or not at all, and what is wrong is named by
row (from 0) and field.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np

from telemetry_bus.cells import (
    IDENTITY_CELLS,
    INT32_MAX,
    METRIC_NAME,
    NAME,
    TRAIN_CELLS,
    Check,
    count,
    number,
    shown,
)
from telemetry_bus.frames import batch_of
from telemetry_bus.gateway.ingest_errors import BadRows, BodyTooLarge, UnreadableBody
from telemetry_bus.gateway.pieces import Piece, pieces_of
from telemetry_bus.schemas import SCHEMAS

BODY_BYTES_MAX = 4 * 1024 * 1024
"""4,096 rows with every field are 2 MiB; the rest is for metrics."""
NAMELESS_BYTES_MAX = 64 * 1024
"""Without the header that names the job, whose token it is only the rows can tell: so much is read of anybody."""
ROWS_MAX = 4_096
"""A second of a job whose 4,096 ranks report through one place."""
ROW_METRICS_MAX = 512
"""As in one call of the SDK's ``run.log``: four norms for each of 128 layers."""
METRICS_MAX = 65_536
"""Of one request: each becomes a row of its own."""
FAULTS_SHOWN = 16
"""More of them tell nothing new."""
JSON_TYPES = frozenset({"application/json"})
LINES_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


def _name(value: object) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        expected = "expected 1 to 96 letters, digits or ._:@+- with a letter or digit first"
        raise ValueError(f"{expected}, found {shown(value)}")
    return value


ROW_CELLS: Mapping[str, Check] = {
    "job": _name,
    "attempt": _name,
    "rank": count(INT32_MAX),
    **IDENTITY_CELLS,
    **TRAIN_CELLS,
}
"""What a row may have, beside ``metrics``: every column of ``train/1``."""
REQUIRED = ("job", "attempt", "step")
ABOUT_THE_ROW = frozenset({"time", "job", "attempt", "rank", "step", *IDENTITY_CELLS})
"""Where and when, for the row of ``train/1`` and its metrics alike; anything else is something to tell of the step."""
_METRIC_SHARED = tuple(name for name in SCHEMAS["metric/1"].names if name in ABOUT_THE_ROW)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainRows:
    """A request's rows: ``rows`` of ``train/1``, and ``metrics`` of ``metric/1``. ``count`` rows were sent."""

    count: int
    rows: Sequence[Row]
    metrics: Sequence[Row]

    @property
    def jobs(self) -> frozenset[str]:
        """The jobs that rows are of."""
        return frozenset(row["job"] for row in (*self.rows, *self.metrics))

    def pieces(self, now: float, region: str | None) -> Iterator[Piece]:
        """The rows, cut for the bus. One that names no region is of ``region``."""
        for schema_id, stream, rows in (("train/1", "train", self.rows), ("metric/1", "metric", self.metrics)):
            if rows:
                yield from _pieces(schema_id, stream, [{"region": region, **row} for row in rows], now)


def read_rows(data: bytes, content_type: str, now: float, job: str | None = None) -> TrainRows:
    """The rows in a body: one object, a list, or an object a line. A row without ``time`` is of ``now``, one without
    ``job`` of ``job``."""
    found = _lines(data) if content_type in LINES_TYPES else _json(data)
    sent = found if isinstance(found, list) else [found]
    if len(sent) > ROWS_MAX:
        raise BodyTooLarge(f"{len(sent)} rows", ROWS_MAX)
    shared: Row = {"time": now, "rank": 0} if job is None else {"time": now, "rank": 0, "job": job}
    rows: list[Row] = []
    metrics: list[Row] = []
    faults: list[Mapping[str, Any]] = []
    for index, row in enumerate(sent):
        if len(faults) > FAULTS_SHOWN:
            break
        wrong = _Faults(index)
        cells, named = _row(row, wrong, shared)
        faults += wrong.found
        if cells.keys() - ABOUT_THE_ROW or not named:
            rows.append(cells)
        metrics += [{**_shared(cells), "name": name, "value": value} for name, value in named.items()]
        if len(metrics) > METRICS_MAX:
            raise BodyTooLarge(f"more than {METRICS_MAX} metrics", METRICS_MAX)
    if faults:
        raise BadRows(faults[:FAULTS_SHOWN], more=len(faults) > FAULTS_SHOWN)
    return TrainRows(len(sent), rows, metrics)


class _Faults:
    """What is wrong with one row."""

    def __init__(self, row: int) -> None:
        self._row = row
        self.found: list[Mapping[str, Any]] = []

    def add(self, field: str, message: str) -> None:
        self.found.append({"row": self._row, "field": field[:80], "message": message})

    def checked(self, check: Callable[[object], Any], value: object, field: str) -> Any:
        """The value as the column has it; ``None`` where it is wrong."""
        try:
            return check(value)
        except ValueError as error:
            self.add(field, str(error))
            return None


def _row(row: object, wrong: _Faults, shared: Row) -> tuple[Row, dict[str, float]]:
    if not isinstance(row, dict):
        wrong.add("row", f"expected a JSON object, found {shown(row)}")
        return {}, {}
    cells = dict(shared)
    for name, value in row.items():
        if name == "metrics" or (value is None and name in ROW_CELLS):
            continue
        if (check := ROW_CELLS.get(name)) is None:
            known = "expected a column of train/1 or 'metrics', found a key of another name"
            wrong.add(_printable(name), known)
            continue
        cells[name] = wrong.checked(check, value, name)
    for name in REQUIRED:
        if name not in cells:
            wrong.add(name, "expected a value, found none")
    return cells, _metrics(row.get("metrics"), wrong)


def _metrics(found: object, wrong: _Faults) -> dict[str, float]:
    if found is None:
        return {}
    if not isinstance(found, dict) or len(found) > ROW_METRICS_MAX:
        size = f"{len(found)} of them" if isinstance(found, dict) else shown(found)
        wrong.add("metrics", f"expected an object of at most {ROW_METRICS_MAX} names and numbers, found {size}")
        return {}
    named = {}
    for name, value in found.items():
        if METRIC_NAME.fullmatch(name) is None or name != _printable(name):
            wrong.add(
                "metrics", f"expected names of 1 to 128 characters without control characters, found {shown(name)}"
            )
        elif value is not None:
            named[name] = wrong.checked(number, value, f"metrics.{name}")
    return named


def _shared(cells: Row) -> Row:
    return {name: cells[name] for name in _METRIC_SHARED if name in cells}


def _printable(text: str) -> str:
    """The text without halves of surrogate pairs, which UTF-8 does not hold."""
    return text.encode("utf-8", "replace").decode()


def _pieces(schema_id: str, stream: str, rows: Sequence[Row], now: float) -> Iterator[Piece]:
    names = [name for name in SCHEMAS[schema_id].names if any(name in row for row in rows)]
    batch = batch_of(schema_id, {name: [row.get(name) for row in rows] for name in names})
    owners = [(row["job"], row["attempt"], row["rank"]) for row in rows]
    known = sorted(set(owners))
    index = {key: at for at, key in enumerate(known)}
    sources = [f"{job}/{attempt}/{rank}/{stream}" for job, attempt, rank in known]
    seconds = np.array([row["time"] for row in rows], dtype=np.float64)
    yield from pieces_of(schema_id, batch, seconds, np.array([index[key] for key in owners]), sources, now)


def _json(data: bytes) -> object:
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _unreadable("a JSON object or a list of them", str(error)) from error


def _lines(data: bytes) -> list[object]:
    lines = data.split(b"\n")
    if len(lines) > ROWS_MAX + 1:
        raise BodyTooLarge(f"{len(lines)} lines", ROWS_MAX)
    return [_json(line) for line in lines if line.strip()]


def _unreadable(expected: str, found: str) -> UnreadableBody:
    error = UnreadableBody(f"the body: expected {expected}, found what is not JSON: {found}")
    error.status = HTTPStatus.UNPROCESSABLE_ENTITY
    return error


def _no_constant(word: str) -> float:
    raise ValueError(f'{word} is not JSON; expected the string "{word}"')
