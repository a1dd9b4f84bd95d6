"""Faults that a simulated fleet can be told to have, and what each does to its rows and events.

What a fault does is not fitted: no recording shows one. The levels below are those that operators see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from collectors.errors import InvalidFault
from collectors.source import EventRow
from telemetry_bus.schemas import EventKind

Array = np.ndarray[Any, np.dtype[Any]]

FAULTS_MAX = 10_000
"""Each is looked at once a tick, some 0.2 us."""

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
THROTTLED_CELSIUS = 87.0
"""About where an H100 begins to slow down."""
XID_DOUBLE_BIT, XID_OFF_THE_BUS = 48, 79


class FaultKind(StrEnum):
    """What goes wrong."""

    THERMAL_THROTTLE = "thermal_throttle"
    """Hot, slower, with the thermal bits of ``clocks_event_reasons``."""
    POWER_BRAKE = "power_brake"
    """Half the power, with the bits for hardware slowdown and power brake."""
    GPU_LOST = "gpu_lost"
    """No rows of the GPU; XID 79 when it begins."""
    XID = "xid"
    """One ``xid`` event with ``code``; the rows go on."""
    ECC_UNCORRECTED = "ecc_uncorrected"
    """The uncorrected ECC counter goes up by one and stays; XID 48 when it begins."""
    NODE_SILENT = "node_silent"
    """Nothing comes from the node, not even events."""
    DRIVER_HUNG = "driver_hung"
    """No rows of the node; a ``driver`` event when it begins and when it ends."""


NODE_WIDE = frozenset({FaultKind.NODE_SILENT, FaultKind.DRIVER_HUNG})
_ACTIVITY = (
    "gpu_utilization_percent",
    "memory_copy_utilization_percent",
    "sm_active_ratio",
    "tensor_active_ratio",
    "dram_active_ratio",
    "fp16_active_ratio",
    "nvlink_tx_bytes_per_second",
    "nvlink_rx_bytes_per_second",
)
_SLOWED = {
    FaultKind.THERMAL_THROTTLE: (0.6, SW_THERMAL | HW_THERMAL),
    FaultKind.POWER_BRAKE: (0.5, HW_SLOWDOWN | POWER_BRAKE),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, from ``at_seconds`` until ``until_seconds`` (``None``: for ever) after the fleet's first tick.

    ``node`` is a name such as ``sim-0001``. ``gpu`` ``None`` means every GPU of it. ``code`` is an XID's number.
    """

    kind: FaultKind
    at_seconds: float
    until_seconds: float | None = None
    node: str = "sim-0001"
    gpu: int | None = None
    code: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not np.isfinite(self.at_seconds) or self.at_seconds < 0:
            raise InvalidFault(self, "at_seconds", "seconds >= 0 after the first tick")
        if self.until_seconds is not None and not self.until_seconds > self.at_seconds:
            raise InvalidFault(self, "until_seconds", "later than at_seconds, or None for ever")
        if (self.code is None) == (self.kind is FaultKind.XID):
            raise InvalidFault(self, "code", "the XID's number for an xid fault, None for any other")
        if self.kind in NODE_WIDE and self.gpu is not None:
            raise InvalidFault(self, "gpu", f"None: {self.kind.value} takes the whole node")

    def active(self, elapsed: float) -> bool:
        """Whether it is there ``elapsed`` seconds after the first tick."""
        return self.at_seconds <= elapsed and (self.until_seconds is None or elapsed < self.until_seconds)


class FaultState:
    """The faults of one running fleet. ``places`` gives (node index, first GPU, one past the last GPU) of each."""

    def __init__(self, faults: Sequence[Fault], places: Sequence[tuple[int, int, int]], shape: tuple[int, int]) -> None:
        self._faults, self._places, self._shape = faults, places, shape
        self._was = [False] * len(faults)
        self._begun = [False] * len(faults)
        self.present = np.ones(shape, dtype=bool)
        """Which GPUs give rows now."""
        self.ecc_uncorrected = np.zeros(shape, dtype=np.int64)

    def tick(self, elapsed: float) -> list[tuple[Fault, bool]]:
        """Take the faults to ``elapsed`` seconds; return those that have begun (True) or ended (False) since."""
        changed = []
        self.present[:] = True
        for index, (fault, (node, first, end)) in enumerate(zip(self._faults, self._places, strict=True)):
            now = fault.active(elapsed)
            begins = not self._begun[index] and elapsed >= fault.at_seconds
            if begins:
                self._begun[index] = True
                changed.append((fault, True))
                if fault.kind is FaultKind.ECC_UNCORRECTED:
                    self.ecc_uncorrected[node, first:end] += 1
            if (self._was[index] or begins) and not now:
                changed.append((fault, False))
            self._was[index] = now
            if now and fault.kind in {FaultKind.GPU_LOST, *NODE_WIDE}:
                self.present[node, first:end] = False
        return changed

    def slow_down(self, signals: dict[str, Array], reasons: Array) -> None:
        """Take power and activity away where clocks are held down, and set the bits, in place."""
        for fault, (node, first, end), on in zip(self._faults, self._places, self._was, strict=True):
            if not on or fault.kind not in _SLOWED:
                continue
            factor, bits = _SLOWED[fault.kind]
            at = node, slice(first, end)
            for name in ("power_watts", *_ACTIVITY):
                signals[name][at] *= np.float32(factor)
            reasons[at] |= bits

    def heat_up(self, temperature: Array) -> None:
        """Make the thermally throttled GPUs hot, in place."""
        for fault, (node, first, end), on in zip(self._faults, self._places, self._was, strict=True):
            if on and fault.kind is FaultKind.THERMAL_THROTTLE:
                temperature[node, first:end] = np.maximum(temperature[node, first:end], THROTTLED_CELSIUS)

    def silent_nodes(self) -> set[int]:
        """Indices of the nodes of which nothing comes now."""
        pairs = zip(self._faults, self._places, self._was, strict=True)
        return {place[0] for fault, place, on in pairs if on and fault.kind is FaultKind.NODE_SILENT}

    def events(self, changed: Sequence[tuple[Fault, bool]], uuid_of: Callable[[int, int], str]) -> list[EventRow]:
        """What the nodes tell about ``changed``; ``uuid_of(node index, gpu)`` names a GPU."""
        place_of = dict(zip(map(id, self._faults), self._places, strict=True))
        rows: list[EventRow] = []
        for fault, begun in changed:
            node, first, end = place_of[id(fault)]
            if fault.kind is FaultKind.DRIVER_HUNG:
                rows.append(_driver_event(fault.node, begun))
            code = _xid_of(fault)
            if begun and code is not None:
                rows += [_xid_event(fault, code, gpu, uuid_of(node, gpu)) for gpu in range(first, end)]
        return rows


def _xid_of(fault: Fault) -> int | None:
    if fault.kind is FaultKind.XID:
        return fault.code
    return {FaultKind.GPU_LOST: XID_OFF_THE_BUS, FaultKind.ECC_UNCORRECTED: XID_DOUBLE_BIT}.get(fault.kind)


def _xid_event(fault: Fault, code: int, gpu: int, uuid: str) -> EventRow:
    message = f"simulated XID {code} on GPU {gpu} of {fault.node}"
    return EventRow(EventKind.XID, fault.node, message, True, gpu, uuid, code, {"fault": fault.kind.value})


def _driver_event(node: str, begun: bool) -> EventRow:
    state = "hung" if begun else "answers"
    message = f"the simulated driver of {node} {'does not answer' if begun else 'answers again'}"
    return EventRow(EventKind.DRIVER, node, message, True, detail={"state": state, "source": "simulated"})
