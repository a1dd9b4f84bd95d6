"""What a GPU's counters and states say between two readings: memory errors, remapped rows, what the driver asks.

Pure: values of successive readings come in, events come out. A value that was not read changes nothing. A counter that
fell began anew, and is no news by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telemetry_bus.schemas import EventKind

Values = Mapping[str, float]
CORRECTED_BURST = 100
"""Corrected errors between two readings (10 s) from which on they are told: single ones are what ECC is for."""
RECOVERY_WORDS = {
    0: "nothing any more",
    1: "reset the GPU",
    2: "reboot the node",
    3: "drain what speaks with it over NVLink",
    4: "drain it and reset",
}
"""NVML's ``nvmlDeviceGpuRecoveryAction_t``."""
FABRIC_HEALTH_WORDS = {1: "healthy", 2: "unhealthy", 3: "of limited capacity"}


@dataclass(frozen=True, slots=True)
class Change:
    """Something has happened to a GPU. ``code`` is of the recovery action alone."""

    kind: EventKind
    message: str
    detail: Mapping[str, Any]
    code: int | None = None


GROWING: Mapping[str, tuple[EventKind, str, int]] = {
    "ecc_uncorrected_volatile_count": (EventKind.ECC, "uncorrected memory errors", 1),
    "sram_ecc_uncorrected_volatile_count": (EventKind.ECC, "uncorrected errors of its caches", 1),
    "ecc_corrected_volatile_count": (EventKind.ECC, "corrected memory errors", CORRECTED_BURST),
    "sram_ecc_corrected_volatile_count": (EventKind.ECC, "corrected errors of its caches", CORRECTED_BURST),
    "row_remap_uncorrected_count": (EventKind.ROW_REMAP, "rows remapped after uncorrectable errors", 1),
    "row_remap_corrected_count": (EventKind.ROW_REMAP, "rows remapped after correctable errors", 1),
    "retired_page_uncorrected_count": (EventKind.ROW_REMAP, "pages retired for uncorrected errors", 1),
}
"""Counters by what their growth is called, and from how many between two readings on it is told."""
FLAGS: Mapping[str, tuple[EventKind, str]] = {
    "row_remap_pending": (EventKind.ROW_REMAP, "a row waits for a reset to be remapped"),
    "row_remap_failed": (EventKind.ROW_REMAP, "a row could not be remapped: replace the GPU"),
    "retired_page_pending": (EventKind.ROW_REMAP, "a page waits for a reboot to be retired"),
    "sram_ecc_threshold_exceeded": (EventKind.ECC, "its caches have more errors than NVIDIA allows: replace the GPU"),
    "memory_unrepairable": (EventKind.ECC, "its memory is broken and cannot be repaired: replace the GPU"),
}
"""Told when they become 1, and at the first reading if they are."""
RESETS = ("energy_joules", "pcie_replay_count", "power_cap_seconds", "ecc_corrected_volatile_count")
"""Counters that begin anew with the driver; one of them that falls is a sign of it."""


class GpuHealth:
    """Remembers one GPU. One object for each uuid."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def observe(self, values: Values) -> list[Change]:
        """What has changed since the last reading."""
        changes = [*self._reset(values), *self._grown(values), *self._flags(values), *self._states(values)]
        self._last.update(values)
        return changes

    def _reset(self, values: Values) -> list[Change]:
        fallen = [name for name in RESETS if name in values and values[name] < self._last.get(name, 0)]
        if not fallen:
            return []
        detail = {"state": "counters_reset", "counters": fallen}
        return [
            Change(EventKind.DRIVER, "its counters have begun anew: it was reset, or the driver loaded again", detail)
        ]

    def _grown(self, values: Values) -> list[Change]:
        changes = []
        for name, (kind, words, least) in GROWING.items():
            if name not in values or name not in self._last:
                continue
            grown = values[name] - self._last[name]
            if grown >= least:
                detail = {"metric": name, "before": self._last[name], "after": values[name]}
                changes.append(Change(kind, f"{grown:.0f} {words}", detail))
        return changes

    def _flags(self, values: Values) -> list[Change]:
        return [
            Change(kind, words, {"metric": name, "before": self._last.get(name), "after": values[name]})
            for name, (kind, words) in FLAGS.items()
            if values.get(name) == 1 and self._last.get(name) != 1
        ]

    def _states(self, values: Values) -> list[Change]:
        changes = []
        action = values.get("recovery_action")
        if action is not None and action != self._last.get("recovery_action", 0):
            words = RECOVERY_WORDS.get(int(action), f"action {action:.0f}")
            detail = {"metric": "recovery_action", "before": self._last.get("recovery_action"), "after": action}
            changes.append(Change(EventKind.RECOVERY_ACTION, f"the driver asks: {words}", detail, int(action)))
        health = values.get("fabric_health")
        if health in (2, 3) and health != self._last.get("fabric_health"):
            detail = {"state": "fabric", "before": self._last.get("fabric_health"), "after": health}
            detail["mask"] = values.get("fabric_health_mask")
            words = f"its NVLink fabric is {FABRIC_HEALTH_WORDS[int(health)]}"
            changes.append(Change(EventKind.DRIVER, words, detail))
        return changes
