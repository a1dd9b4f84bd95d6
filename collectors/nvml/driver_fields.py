"""Many fields of one GPU in one call, beside ``driver`` the door to NVML.

A reading of eight GPUs asks for some two hundred fields each second, so the array that goes to the driver is made once
for each set of fields, and what comes back is read as plain memory: pynvml's own structures take some microseconds a
field.
"""

import struct
from collections.abc import Sequence

import pynvml

from collectors.nvml.driver import (
    INT64_MAX,
    NOT_AVAILABLE,
    Device,
    DriverFault,
    fault_of,
    function,
    implausible,
    known_fault,
    unavailable,
)

FieldKey = tuple[int, int]
"""A field's number and its scope: mostly 0, else a link, or :data:`ALL_LINKS`."""
FieldAnswer = float | int | DriverFault
ALL_LINKS = 0xFFFF_FFFF
"""The scope that gives the sum over all links (nvml.h: "a scopeId of UINT_MAX")."""

_ASKED = struct.Struct("=II16xIi8x")
"""nvmlFieldValue_t as it is sent: field, scope, (timestamp, latency), type, code, (value)."""
_FOUND = struct.Struct("=24xIiQ")
"""nvmlFieldValue_t as it comes back: type, code, the eight bytes of the value."""
_DOUBLE, _UINT, _ULONG, _ULONGLONG = 0, 1, 2, 3
_LLONG, _INT, _USHORT = 4, 5, 6


def field_name(field_id: int) -> str:
    """What nvml.h calls a field, for the documentation."""
    known = vars(pynvml)
    # Of two names of one number the later one in the file is the newer.
    return str(next(name for name in reversed(known) if name.startswith("NVML_FI_") and known[name] == field_id))


class FieldBatch:
    """Some fields of one GPU, read together."""

    def __init__(self, keys: Sequence[FieldKey]) -> None:
        self.keys = tuple(keys)
        # Where the driver leaves an entry alone, it says "unknown error" and not what the last reading found.
        self._empty = b"".join(_ASKED.pack(*key, 0, pynvml.NVML_ERROR_UNKNOWN) for key in self.keys)
        self._array = (pynvml.c_nvmlFieldValue_t * len(self.keys))()
        self._memory = memoryview(self._array).cast("B")
        assert len(self._empty) == len(self._memory), "nvmlFieldValue_t has another size than this file thinks"

    def read(self, device: Device) -> tuple[list[FieldAnswer], bool]:
        """A value or a fault for each key, and whether there is any fault. Raises DriverFault if the call fails."""
        self._memory[:] = self._empty
        code = function("nvmlDeviceGetFieldValues")(device.handle, len(self.keys), self._array)
        if code:
            raise fault_of(code)
        faulty = False
        answers: list[FieldAnswer] = []
        for kind, refused, raw in _FOUND.iter_unpack(self._memory):
            if refused:
                answers.append(known_fault(refused))
                faulty = True
            elif kind == _UINT and (small := raw & 0xFFFF_FFFF) not in NOT_AVAILABLE:
                answers.append(small)
            elif kind == _ULONGLONG and raw <= INT64_MAX and raw not in NOT_AVAILABLE:
                answers.append(raw)
            else:
                answers.append(answer := _other(kind, raw))
                faulty = faulty or answer.__class__ is DriverFault
        return answers, faulty


def _other(kind: int, raw: int) -> FieldAnswer:
    if kind == _DOUBLE:
        number: float = struct.unpack("=d", struct.pack("=Q", raw))[0]
        return number
    if kind == _INT:
        small = raw & 0xFFFF_FFFF
        return small - (1 << 32) if small >> 31 else small
    if kind == _LLONG:
        return raw - (1 << 64) if raw >> 63 else raw
    if kind == _USHORT:
        return raw & 0xFFFF
    if kind == _UINT or (kind in {_ULONG, _ULONGLONG} and raw in NOT_AVAILABLE):
        return unavailable()
    return raw if kind == _ULONG and raw <= INT64_MAX else implausible()
