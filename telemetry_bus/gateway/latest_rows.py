"""Each GPU's newest row, remembered: a scrape that comes in two requests ends as one whole row.

A sender cuts its batches where they are full, in the middle of a GPU. A row of the rest alone would say of everything
in the first half that it is absent, and a reader who looks at the newest row would believe it. So the later row
repeats what the earlier one of the same instant said.
"""

import threading
from collections.abc import Sequence

import numpy as np

from telemetry_bus.frames import Array
from telemetry_bus.gateway.metric_mapping import COLUMNS, Gpu

GPUS_MAX = 65_536
"""As many as a request can name (its samples have that bound). So many rows of 50 columns have 28 MiB, of which those
take memory that are used. At the bound all are forgotten, which parts one scrape at most."""


class LatestRows:
    """Cells by GPU and column. It may be used by several threads."""

    def __init__(self, gpus_max: int = GPUS_MAX) -> None:
        self._gpus_max = gpus_max
        self._lock = threading.Lock()
        self._slots: dict[Gpu, int] = {}
        self._seconds = np.zeros(gpus_max)
        self._values = np.zeros((gpus_max, len(COLUMNS)))
        self._valid = np.zeros((gpus_max, len(COLUMNS)), dtype=bool)

    def join(self, gpus: Sequence[Gpu], gpu: Array, seconds: Array, values: Array, valid: Array) -> None:
        """Fill in what is known of each row, in place, and remember the newest of each GPU.

        Row ``i`` is of ``gpus[gpu[i]]`` at ``seconds[i]``; rows are in the order of their times, one a GPU and instant.
        ``values`` and ``valid`` are of shape ``(rows, columns)``.
        """
        with self._lock:
            slot = self._slots_of(gpus)[gpu]
            same = self._seconds[slot] == seconds
            fill = same[:, None] & self._valid[slot] & ~valid
            values[fill] = self._values[slot][fill]
            valid |= fill
            newest = np.full(len(gpus), -1)
            newest[gpu] = np.arange(len(gpu))
            rows = newest[newest >= 0]
            rows = rows[seconds[rows] >= self._seconds[slot[rows]]]
            chosen = slot[rows]
            self._seconds[chosen], self._values[chosen], self._valid[chosen] = seconds[rows], values[rows], valid[rows]

    def _slots_of(self, gpus: Sequence[Gpu]) -> Array:
        if len(self._slots) + sum(gpu not in self._slots for gpu in gpus) > self._gpus_max:
            self._slots.clear()
            self._seconds[:] = 0.0
            self._valid[:] = False
        return np.array([self._slots.setdefault(gpu, len(self._slots)) for gpu in gpus], dtype=np.int64)
