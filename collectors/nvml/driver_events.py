"""NVML's event set: XIDs as the driver tells them. Waiting blocks a thread of its own."""

from dataclasses import dataclass

import pynvml

from collectors.nvml.driver import Device, DriverFault, _call

WAIT_MS = 5_000
"""A wait without an event ends after this, so that GPUs that have come back can be registered."""


@dataclass(frozen=True, slots=True)
class DriverXid:
    """An XID of a GPU, by NVML's handle."""

    device: Device
    code: int


class EventSet:
    """Waits for the XIDs of the GPUs that were registered. Every method raises :class:`DriverFault`."""

    def __init__(self) -> None:
        self._set = _call(pynvml.nvmlEventSetCreate)

    def register(self, device: Device) -> None:
        """Hear of this GPU from now on."""
        _call(pynvml.nvmlDeviceRegisterEvents, device.handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def wait(self) -> DriverXid | None:
        """The next XID, ``None`` if there was none within :data:`WAIT_MS`. Blocks."""
        try:
            found = _call(pynvml.nvmlEventSetWait_v2, self._set, WAIT_MS)
        except DriverFault as fault:
            if fault.code == pynvml.NVML_ERROR_TIMEOUT:
                return None
            raise
        return DriverXid(Device(found.device), int(found.eventData))
