"""The door to NVML: the only importer of pynvml.

Every method blocks and may block for ever. What NVML refuses comes out as :class:`DriverFault` with our reason. Units
are converted here, once: milliwatts to watts, millijoules to joules, bytes to MiB.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pynvml

from collectors.errors import FieldFailure

_T = TypeVar("_T")

_MIB = 1 << 20
_PERFORMANCE_STATE_MAX = 15
"""NVML says 32 where it does not know the P-state."""
_NOT_AVAILABLE = frozenset({(1 << 64) - 1, (1 << 32) - 1})
"""NVML_VALUE_NOT_AVAILABLE (-1) as the unsigned types show it."""

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: FieldFailure.UNSUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: FieldFailure.UNSUPPORTED,
    # What an older driver says to a field that it does not know.
    pynvml.NVML_ERROR_INVALID_ARGUMENT: FieldFailure.UNSUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: FieldFailure.UNSUPPORTED,
    pynvml.NVML_ERROR_DEPRECATED: FieldFailure.UNSUPPORTED,
    pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED: FieldFailure.UNSUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION: FieldFailure.NOT_PERMITTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: FieldFailure.GPU_LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: FieldFailure.GPU_LOST,
}
_VALUE_OF_TYPE = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}

FIELD_ECC_CORRECTED_VOLATILE: int = pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL
FIELD_ECC_UNCORRECTED_VOLATILE: int = pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL
FIELD_MEMORY_TEMPERATURE: int = pynvml.NVML_FI_DEV_MEMORY_TEMP
FIELD_ENERGY: int = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
FIELD_PCIE_REPLAY: int = pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER
FIELD_ROW_REMAP_UNCORRECTED: int = pynvml.NVML_FI_DEV_REMAPPED_UNC
FIELD_ROW_REMAP_PENDING: int = pynvml.NVML_FI_DEV_REMAPPED_PENDING
FIELD_ROW_REMAP_FAILED: int = pynvml.NVML_FI_DEV_REMAPPED_FAILURE


class DriverFault(Exception):
    """NVML has refused a call. ``reason`` is ours, ``code`` is NVML's."""

    def __init__(self, reason: FieldFailure, code: int, message: str) -> None:
        super().__init__(f"{message} (NVML code {code})")
        self.reason = reason
        self.code = code

    @property
    def library_missing(self) -> bool:
        """Whether there is no NVML library at all."""
        return self.code == int(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


class Driver:
    """NVML, initialised by :meth:`open`."""

    def open(self) -> None:
        """Load the library and start it. Raises :class:`DriverFault`."""
        _call(pynvml.nvmlInit)

    def close(self) -> None:
        """Shut the library down."""
        _call(pynvml.nvmlShutdown)

    def version(self) -> str:
        """The driver's version."""
        return str(_call(pynvml.nvmlSystemGetDriverVersion))

    def count(self) -> int:
        """How many GPUs the driver shows."""
        return int(_call(pynvml.nvmlDeviceGetCount))

    def device(self, index: int) -> "Device":
        """The GPU at ``index``, in NVML's order (by PCI bus)."""
        return Device(_call(pynvml.nvmlDeviceGetHandleByIndex, index))


class Device:
    """One GPU. Every method raises :class:`DriverFault`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def uuid(self) -> str:
        """``GPU-...``, the same for the life of the card."""
        return str(_call(pynvml.nvmlDeviceGetUUID, self._handle))

    def name(self) -> str:
        """The product's name."""
        return str(_call(pynvml.nvmlDeviceGetName, self._handle))

    def utilization_percent(self) -> tuple[float, float]:
        """GPU and memory copy."""
        rates = _call(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        return float(rates.gpu), float(rates.memory)

    def memory_mib(self) -> tuple[float, float]:
        """Used (without what the driver reserves) and total."""
        memory = _newer(
            lambda: pynvml.nvmlDeviceGetMemoryInfo(self._handle, pynvml.nvmlMemory_v2),
            lambda: pynvml.nvmlDeviceGetMemoryInfo(self._handle),
        )
        return _available(memory.used) / _MIB, _available(memory.total) / _MIB

    def temperature_celsius(self) -> float:
        """Of the core."""
        sensor = pynvml.NVML_TEMPERATURE_GPU
        celsius = _newer(
            lambda: pynvml.nvmlDeviceGetTemperatureV(self._handle, sensor),
            lambda: pynvml.nvmlDeviceGetTemperature(self._handle, sensor),
        )
        return float(celsius)

    def power_watts(self) -> float:
        """Of the board; from Ampere on the mean of a second."""
        return float(_call(pynvml.nvmlDeviceGetPowerUsage, self._handle)) / 1e3

    def power_limit_watts(self) -> float:
        """What is enforced now."""
        return float(_call(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._handle)) / 1e3

    def sm_clock_mhz(self) -> float:
        """Of the multiprocessors."""
        return float(_call(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM))

    def memory_clock_mhz(self) -> float:
        """Of the device memory."""
        return float(_call(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_MEM))

    def performance_state(self) -> float:
        """0 to 15."""
        state = int(_call(pynvml.nvmlDeviceGetPerformanceState, self._handle))
        if not 0 <= state <= _PERFORMANCE_STATE_MAX:
            raise _unavailable()
        return float(state)

    def clocks_event_reasons(self) -> int:
        """The bitmask."""
        reasons = _newer(
            lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle),
            lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),
        )
        return int(reasons)

    def pcie_link_generation(self) -> float:
        """As it runs now."""
        return float(_call(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, self._handle))

    def pcie_link_width(self) -> float:
        """Lanes, as it runs now."""
        return float(_call(pynvml.nvmlDeviceGetCurrPcieLinkWidth, self._handle))

    def fields(self, ids: Sequence[int]) -> list[float | int | DriverFault]:
        """Many fields in one call; each has a value or a fault of its own."""
        return [_field_value(value) for value in _call(pynvml.nvmlDeviceGetFieldValues, self._handle, list(ids))]


def _newer(new: Callable[[], Any], old: Callable[[], Any]) -> Any:
    """``new``, or ``old`` where the installed driver is from before it."""
    try:
        return _call(new)
    except DriverFault as fault:
        if fault.reason is not FieldFailure.UNSUPPORTED:
            raise
        return _call(old)


def _field_value(value: Any) -> float | int | DriverFault:
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return _fault(pynvml.NVMLError(value.nvmlReturn))
    name = _VALUE_OF_TYPE.get(value.valueType)
    if name is None:
        return _unavailable()
    number: float | int = getattr(value.value, name)
    return _unavailable() if number in _NOT_AVAILABLE else number


def _available(number: int) -> int:
    if number in _NOT_AVAILABLE:
        raise _unavailable()
    return number


def _unavailable() -> DriverFault:
    code = pynvml.NVML_ERROR_NOT_SUPPORTED
    return DriverFault(FieldFailure.UNSUPPORTED, code, "the driver gives its mark for 'not available'")


def _fault(error: Any) -> DriverFault:
    return DriverFault(_REASONS.get(error.value, FieldFailure.DRIVER_ERROR), error.value, str(error))


def _call(function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise _fault(error) from error
