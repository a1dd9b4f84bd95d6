"""The backlogs of the nodes: what each one's collector has told of its spool. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from telemetry_bus.frames import Frame
from telemetry_bus.schemas import EventKind

NODES_MAX = 65_536
"""37,500 nodes, and room; the longest silent is forgotten first. Some 200 bytes each."""
FORGET_SECONDS = 8 * 3600.0
"""A spool holds four hours: what was told of it that long ago twice over says nothing any more."""
COUNT_END = 1 << 63
"""No spool holds so many frames or bytes."""


@dataclass(frozen=True, slots=True)
class Spool:
    """What waits on one node's disk. ``oldest_seconds`` is the age that its oldest frame had at ``time``."""

    time: float
    frames: int
    bytes: int
    oldest_seconds: float


class Spools:
    """The nodes that have a backlog."""

    def __init__(self) -> None:
        self._held: dict[str, Spool] = {}

    def observe(self, frame: Frame) -> None:
        """Take an ``event/1`` frame; only rows of spools are looked at."""
        kinds: Any = pc.equal(frame.batch.column("kind"), pa.scalar(EventKind.SPOOL.value))
        at = np.flatnonzero(np.asarray(kinds))
        if not len(at):
            return
        times = frame.times()
        rows = frame.batch.select(["node", "detail"]).take(at).to_pylist()
        for row, time in zip(rows, times[at].tolist(), strict=True):
            spool = _read(row["detail"], time)
            if row["node"] is not None and spool is not None:
                self._put(row["node"], spool)

    def _put(self, node: str, spool: Spool) -> None:
        known = self._held.get(node)
        if known is not None and known.time > spool.time:
            return
        self._held.pop(node, None)
        if spool.frames:
            self._held[node] = spool
            if len(self._held) > NODES_MAX:
                del self._held[next(iter(self._held))]

    def forget(self, now: float) -> None:
        """Free what was told long ago."""
        self._held = {node: spool for node, spool in self._held.items() if now - spool.time < FORGET_SECONDS}

    def total(self, now: float) -> Mapping[str, Any]:
        """How many nodes have a backlog and how much of it; ``oldest_seconds`` is None where nobody has one."""
        held = list(self._held.values())
        ages = [now - spool.time + spool.oldest_seconds for spool in held]
        return {
            "nodes": len(held),
            "frames": sum(spool.frames for spool in held),
            "bytes": sum(spool.bytes for spool in held),
            "oldest_seconds": max(ages, default=None),
        }


def _read(detail: str | None, time: float) -> Spool | None:
    """What a row's detail says; ``None`` for what another version, or somebody else, has written."""
    try:
        told = json.loads(detail or "")
        spool = Spool(time, int(told["frames"]), int(told["bytes"]), float(told["oldest_seconds"] or 0.0))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    counts = 0 <= spool.frames < COUNT_END and 0 <= spool.bytes < COUNT_END  # a larger one is no float: no figure
    sound = counts and math.isfinite(spool.oldest_seconds)
    return spool if sound else None
