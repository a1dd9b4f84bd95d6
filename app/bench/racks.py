"""The rows of racks for `bench pipeline`: values that are fresh every second and cost next to nothing to make.

A column's second is a slice, from a random place, of a pool of random numbers that is made once; counters grow.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from telemetry_bus.frames import Array, Frame, batch_of
from telemetry_bus.manifest import Manifest, Run
from telemetry_bus.metric_names import GPU_METRICS
from telemetry_bus.schemas import SCHEMAS, TIME

GPUS_PER_NODE = 8
POOL = 1 << 20
"""Random numbers to draw from: a rack of 512 rows finds a million different columns in them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Random numbers for every kind of column."""

    floats: Array
    doubles: Array
    integers: Array

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Pool":
        """A pool."""
        whole = rng.integers(0, 1000, POOL)
        return cls(rng.random(POOL, dtype=np.float32) * 100.0, rng.random(POOL) * 100.0, whole)


class Rack:
    """The GPUs of one rack, and how many frames each of its nodes has made."""

    def __init__(self, number: int, gpus: int, metrics: int, region: str, rng: np.random.Generator) -> None:
        nodes = -(-gpus // GPUS_PER_NODE)
        self.name = f"rack-{number:03d}"
        self.nodes = [f"{self.name}-node-{at:02d}" for at in range(nodes)]
        self._counts = np.full(nodes, GPUS_PER_NODE)
        self._counts[-1] = gpus - GPUS_PER_NODE * (nodes - 1)
        self._rng, self._rows, self._seconds = rng, gpus, 0
        self._metrics = GPU_METRICS[:metrics]
        self._manifest = Manifest.of(
            Run(f"{node}/gpu", uuid.uuid4(), 0, int(rows), 0.0)
            for node, rows in zip(self.nodes, self._counts, strict=True)
        )
        gpu: Array = np.concatenate([np.arange(count, dtype=np.int32) for count in self._counts])
        identity = {
            "time": np.zeros(gpus),
            "region": [region] * gpus,
            "node": pa.array(np.repeat(self.nodes, self._counts)),
            "gpu": gpu,
            "uuid": [f"GPU-{uuid.UUID(int=int(rng.integers(1 << 62)))}" for _ in range(gpus)],
            "simulated": np.ones(gpus, dtype=bool),
        }
        self._template = batch_of("gpu/1", identity).columns
        self._places = [SCHEMAS["gpu/1"].get_field_index(metric.name) for metric in self._metrics]

    def second(self, now: float, pool: Pool, silent: Sequence[int]) -> Frame:
        """The frame of this second; nodes in ``silent`` send nothing from now on."""
        self._seconds += 1
        columns = list(self._template)
        columns[0] = pa.array(np.full(self._rows, round(now * 1e6)), TIME)
        starts = self._rng.integers(0, POOL - self._rows, len(self._metrics)).tolist()
        for metric, place, start in zip(self._metrics, self._places, starts, strict=True):
            columns[place] = pa.array(self._column(metric.arrow, pool, start))
        batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMAS["gpu/1"])
        frame = Frame("gpu/1", batch, self._runs(now))
        return self._without(frame, silent) if silent else frame

    def _column(self, kind: str, pool: Pool, start: int) -> Array:
        end = start + self._rows
        if kind == "float":
            return pool.floats[start:end]
        grown = self._seconds * 1000
        return pool.doubles[start:end] + grown if kind == "double" else pool.integers[start:end] + grown

    def _runs(self, now: float) -> Manifest:
        made = self._manifest
        seqs = np.full(len(made), self._seconds - 1, dtype=np.int64)
        return Manifest(made.boots, made.names, made.ends, seqs, made.rows, np.full(len(made), now))

    def _without(self, frame: Frame, silent: Sequence[int]) -> Frame:
        kept = np.ones(len(self.nodes), dtype=bool)
        kept[list(silent)] = False
        mask = pa.array(np.repeat(kept, self._counts))
        return Frame(frame.schema_id, frame.batch.filter(mask), frame.manifest.selected(kept))
