"""Every source read once, as rows that a person or a script can look at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from collectors.framing import event_batch
from collectors.source import Source
from telemetry_bus.frames import batch_of
from telemetry_bus.json_text import NON_FINITE
from telemetry_bus.runtime.clock import Clock

_FIRST = {
    "gpu/1": ("node", "gpu", "uuid"),
    "link/1": ("node", "kind", "device", "port"),
    "event/1": ("kind", "node", "gpu", "uuid"),
}


async def collect_once(sources: Sequence[Source], clock: Clock, *, region: str | None = None) -> list[dict[str, Any]]:
    """What would be sent, a dictionary a row; ``None`` where absent, for ``telemetry_bus.json_text.dumps``.

    Opens and closes the sources. Raises what opening one raises. ``time`` is UTC seconds.
    """
    rows: list[dict[str, Any]] = []
    for source in sources:
        async with source:
            now = clock.now()
            reading = await source.read(now)
        if reading.gpus is not None:
            rows += _rows("gpu/1", batch_of("gpu/1", reading.gpus.columns(now, region)))
        if reading.links is not None:
            rows += _rows("link/1", batch_of("link/1", reading.links.columns(now, region)))
        if reading.events:
            rows += _rows("event/1", event_batch(reading.events, now, region))
    return rows


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
