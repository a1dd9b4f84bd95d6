"""Every source read once, as rows that a person or a script can look at."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from collectors.errors import SourceUnavailable
from collectors.framing import event_batch
from collectors.source import Column, GpuRows, Source
from telemetry_bus.frames import batch_of
from telemetry_bus.json_text import NON_FINITE
from telemetry_bus.runtime.clock import Clock

RATE_SECONDS = 1.0
"""Between the two readings of which a rate is made; it is what passes between two readings of a collector."""
_FIRST = {
    "gpu/1": ("node", "gpu", "uuid"),
    "link/1": ("node", "kind", "device", "port"),
    "event/1": ("kind", "node", "gpu", "uuid"),
}


class Once(NamedTuple):
    """What would be sent, a dictionary a row, and which optional sources could not be opened, by name with what to do.

    In a row ``time`` is UTC seconds, and what is absent is ``None``; it is for ``telemetry_bus.json_text.dumps``.
    """

    rows: list[dict[str, Any]]
    unavailable: dict[str, str]


async def collect_once(
    sources: Sequence[Source], clock: Clock, *, optional: Sequence[Source] = (), region: str | None = None
) -> Once:
    """Open, read and close one source after the other. Raises what the opening of one of ``sources`` raises."""
    once = Once([], {})
    for source in (*sources, *optional):
        try:
            once.rows.extend(await _read_once(source, clock, region))
        except SourceUnavailable as error:
            if source in sources:
                raise
            once.unavailable[source.name] = str(error)
    return once


async def _read_once(source: Source, clock: Clock, region: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with source:
        now = clock.now()
        reading = await source.read(now)
        gpus = None if reading.gpus is None else await _with_rates(source, reading.gpus, clock)
    if gpus is not None:
        rows += _rows("gpu/1", batch_of("gpu/1", gpus.columns(now, region)))
    if reading.links is not None:
        rows += _rows("link/1", batch_of("link/1", reading.links.columns(now, region)))
    if reading.events:
        rows += _rows("event/1", event_batch(reading.events, now, region))
    return rows


async def _with_rates(source: Source, first: GpuRows, clock: Clock) -> GpuRows:
    """The rows with what only a second reading gives: rates, and the shares of profiling."""
    await asyncio.sleep(RATE_SECONDS)
    second = (await source.read(clock.now())).gpus
    if second is None or not second.uuid.equals(first.uuid):
        return first
    metrics = {name: _either(second.metrics.get(name), column) for name, column in first.metrics.items()}
    return replace(first, metrics={**second.metrics, **metrics})


def _either(newer: Column | None, older: Column) -> Column:
    if newer is None:
        return older
    return Column(np.where(newer.valid, newer.values, older.values), newer.valid | older.valid)


def _rows(schema_id: str, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
    order = [*_FIRST[schema_id], *(name for name in columns if name not in _FIRST[schema_id])]
    return [{"schema": schema_id} | {name: columns[name][row] for name in order} for row in range(batch.num_rows)]


def _values(column: "pa.Array[Any]") -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return [None if micros is None else micros / 1e6 for micros in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_float32(column.type):
        # 71.1 W must not come out as 71.0999984741211.
        return [None if value is None else _shortest(value) for value in column.to_pylist()]
    return column.to_pylist()


def _shortest(value: float) -> float:
    text = str(np.float32(value))
    return NON_FINITE.get(text, float(text))
