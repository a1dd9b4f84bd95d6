"""``nantucket tail``: the stream in a terminal, row by row."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from app.settings import Settings
from telemetry_bus import Frame, Intake, Latest, Record, Topic, open_bus
from telemetry_bus.bus import SEPARATOR, AtTime, Start
from telemetry_bus.json_text import dumps
from telemetry_bus.runtime.clock import Clock

ROW_COLUMNS_HIDDEN = frozenset({"payload", "detail"})


async def tail(
    settings: Settings, topics: tuple[Topic, ...], clock: Clock, *, since_seconds: float | None, as_json: bool
) -> int:
    """Print what comes on ``topics`` until interrupted, from ``since_seconds`` ago on; 1 if there is no log."""
    url = settings.bus_url
    if (missing := missing_log(url)) is not None:
        remedy = "Start nantucket up, or name another with --bus or --state."
        print(f"{missing} is not there: expected a log. {remedy}", file=sys.stderr)
        return 1
    start: Start = Latest() if since_seconds is None else AtTime(clock.now() - since_seconds)
    intake = Intake()
    async with (
        open_bus(url, clock, settings.kafka.options) as bus,
        bus.subscribe(topics, start) as subscription,
    ):
        async for records in subscription:
            for record in records:
                _print(intake, record, as_json=as_json)
            sys.stdout.flush()
    return 0


def missing_log(url: str) -> Path | None:
    """The file of the embedded log behind ``url`` if it (of several, home's) is not there: who only reads must not make
    one."""
    parts = urlsplit(url.partition(SEPARATOR)[0].strip())
    file = Path(unquote(parts.path)) / "log.sqlite"
    return file if parts.scheme == "file" and not file.exists() else None


def _print(intake: Intake, record: Record, *, as_json: bool) -> None:
    taken = intake.take(record)
    for refusal in taken.refusals:
        print(f"refused at {record.topic} offset {record.offset}: {refusal.message}", file=sys.stderr)
    if taken.frame is not None:
        for row in rows_of(taken.frame):
            print(
                dumps({"topic": record.topic.value, "offset": record.offset, **row}) if as_json else _line(record, row)
            )


def rows_of(frame: Frame) -> Iterator[dict[str, Any]]:
    """The rows of ``frame`` as JSON-ready dictionaries without what is absent; times as ISO 8601."""
    for row in frame.batch.to_pylist():
        yield {
            name: value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
            for name, value in row.items()
            if value is not None and name not in ROW_COLUMNS_HIDDEN
        }


def _line(record: Record, row: dict[str, Any]) -> str:
    time = row.pop("time", "")
    cells = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.items())
    return f"{time[11:23]} {record.topic.value:17} {' '.join(cells)}"
