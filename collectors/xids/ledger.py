"""Which reports of an XID are one occurrence, how often it has happened, and what it followed. Pure: no I/O, no clock.

The kernel log and NVML both tell of an XID, in either order, and twice the same XID is two. So the n-th report of a
code on a GPU by the one is the n-th by the other, where they are no more than :data:`SAME_SECONDS` apart.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from collectors.source import EventRow
from collectors.xids.catalogue import FOLLOW_ONS, xid_of
from collectors.xids.flood import Flood
from collectors.xids.nvlink5 import decode
from collectors.xids.recovery import recovery_in
from telemetry_bus.schemas import EventKind

SAME_SECONDS = 10.0
"""Both come from one interrupt, milliseconds apart; a collector that was held up reads one of them seconds later."""
HOLD_SECONDS = 0.5
"""So long a report of NVML waits for the kernel's line where that is read too: the line says more (which link, which
process). It comes first as a rule."""
PARENT_SECONDS = 60.0
"""Channels are stopped within milliseconds of their cause, and removed when the application ends, within a minute."""
UNMATCHED_MAX = 64
"""Reports of one code on one GPU that wait for the other's: of a flood the newest."""
SERIES_MAX = 4_096
"""Pairs of a GPU and a code that are remembered, the newest: 16 GPUs and 131 codes are 2,096."""
TEXT_MAX = 512
"""Characters of the kernel's line that are passed on; the longest known ones have some 200."""


class Origin(StrEnum):
    """Who has told of an XID."""

    KERNEL_LOG = "kernel_log"
    NVML = "nvml"


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """A GPU of this node. ``pci`` is its address in any of the usual forms."""

    gpu: int
    uuid: str
    pci: str


@dataclass(slots=True)
class _Report:
    """One report that has no match yet. ``held`` is the row that waits for the other origin's words."""

    at: float
    seen: float
    held: bool = False


@dataclass(slots=True)
class _Series:
    """One code on one GPU."""

    count: int = 0
    waiting: dict[Origin, deque[_Report]] = field(default_factory=dict)
    flood: Flood = field(default_factory=Flood)


def slot_of(pci: str) -> str:
    """``0000:1b:00`` for any form of a PCI address (``00000000:1B:00.0``, ``PCI:0000:1b:00``); itself if it is none."""
    parts = pci.lower().removeprefix("pci:").split(".")[0].split(":")
    try:
        domain, bus, device = (int(part, 16) for part in parts)
    except ValueError:
        return pci.lower()
    return f"{domain:04x}:{bus:02x}:{device:02x}"


class XidLedger:
    """The XIDs of ``node``: one object, which everybody who hears of them tells."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.reads_kernel_log = False
        """Whether somebody reads the kernel log: then NVML's reports wait a moment for its words."""
        self._by_slot: dict[str, GpuIdentity] = {}
        self._slots: dict[str, str] = {}
        self._series: OrderedDict[tuple[str, int], _Series] = OrderedDict()
        self._causes: dict[str, tuple[int, float]] = {}

    def know(self, gpus: Sequence[GpuIdentity]) -> None:
        """The GPUs of this node as the driver lists them now. One that is not listed any more stays known: a GPU that
        has fallen off the bus still has its last words."""
        for gpu in gpus:
            slot = slot_of(gpu.pci)
            self._by_slot[slot] = gpu
            self._slots[gpu.uuid] = slot

    def saw(
        self,
        origin: Origin,
        now: float,
        *,
        pci: str | None,
        uuid: str | None,
        code: int,
        message: str = "",
        detail: Mapping[str, Any] | None = None,
        time: float | None = None,
    ) -> EventRow | None:
        """The row to send; ``None`` where this occurrence was told already, waits for better words, or is one of a
        flood. ``now`` is when it was heard, ``time`` when it happened (UTC seconds)."""
        key = self._key(pci, uuid)
        series = self._of(key, code)
        at = now if time is None else time
        other = self._taken(series, _OTHER[origin], at)
        if other is not None and not other.held:
            return None
        if other is None:
            holds = origin is Origin.NVML and self.reads_kernel_log
            waiting = series.waiting.setdefault(origin, deque(maxlen=UNMATCHED_MAX))
            waiting.append(_Report(at, now, holds))
            if holds:
                return None
        return self._told(key, code, series, origin, at, message, detail or {})

    def due(self, now: float) -> list[EventRow]:
        """The rows whose wait for the kernel's words is over, and the ends of floods."""
        rows = []
        for (key, code), series in list(self._series.items()):
            for report in series.waiting.get(Origin.NVML, ()):
                if report.held and now - report.seen >= HOLD_SECONDS:
                    report.held = False
                    rows.append(self._told(key, code, series, Origin.NVML, report.at, "", {}))
            if suppressed := series.flood.ended(now):
                rows.append(self._row(key, code, now, f"{suppressed} more of XID {code}", {"suppressed": suppressed}))
        return [row for row in rows if row is not None]

    def _told(
        self,
        key: str,
        code: int,
        series: _Series,
        origin: Origin,
        at: float,
        text: str,
        more: Mapping[str, Any],
    ) -> EventRow | None:
        series.count += 1
        parent = self._parent(key, code, at)
        if not series.flood.lets_through(at):
            return None
        known = xid_of(code)
        detail = {
            "count": series.count,
            "origin": origin.value,
            "mnemonic": known.mnemonic,
            "action": known.action,
            "investigate": known.investigate,
            **({"parent": parent} if parent else {}),
            **({"text": text[:TEXT_MAX]} if text else {}),
            **decode(code, text),
            **recovery_in(code, text),
            **more,
        }
        if suppressed := series.flood.taken():
            detail["suppressed"] = suppressed
        words = known.meaning or known.mnemonic or "a code that NVIDIA's catalogue does not have"
        behind = f", {parent['seconds_before']:g} s after XID {parent['code']}" if parent else ""
        return self._row(key, code, at, f"XID {code}: {words}{behind}", detail)

    def _row(self, key: str, code: int, at: float, words: str, detail: Mapping[str, Any]) -> EventRow:
        gpu = self._by_slot.get(key)
        where = f"GPU {gpu.gpu}" if gpu is not None else f"the GPU at {key}"
        return EventRow(
            EventKind.XID,
            self.node,
            f"{self.node}: {where}: {words}",
            False,
            None if gpu is None else gpu.gpu,
            None if gpu is None else gpu.uuid,
            code,
            {"pci": key, **detail},
            at,
        )

    def _parent(self, key: str, code: int, at: float) -> dict[str, Any] | None:
        """The cause of a follow-on, and what is to be remembered as one."""
        if code not in FOLLOW_ONS:
            self._causes[key] = (code, at)
            while len(self._causes) > SERIES_MAX:
                del self._causes[next(iter(self._causes))]
            return None
        cause, since = self._causes.get(key, (0, -math.inf))
        if not 0.0 <= at - since <= PARENT_SECONDS:
            return None
        return {"code": cause, "seconds_before": round(at - since, 3)}

    def _key(self, pci: str | None, uuid: str | None) -> str:
        """The GPU's slot; its uuid, where nobody knows the slot."""
        if pci is not None:
            return slot_of(pci)
        return self._slots.get(uuid or "", uuid or "?")

    def _of(self, key: str, code: int) -> _Series:
        found = self._series.setdefault((key, code), _Series())
        self._series.move_to_end((key, code))
        while len(self._series) > SERIES_MAX:
            self._series.popitem(last=False)
        return found

    @staticmethod
    def _taken(series: _Series, origin: Origin, at: float) -> _Report | None:
        """The oldest report of ``origin`` that may be this occurrence; it waits no more."""
        waiting = series.waiting.get(origin)
        while waiting:
            if abs(at - waiting[0].at) <= SAME_SECONDS:
                return waiting.popleft()
            if waiting[0].at > at or waiting[0].held:
                return None
            waiting.popleft()
        return None


_OTHER = {Origin.KERNEL_LOG: Origin.NVML, Origin.NVML: Origin.KERNEL_LOG}
