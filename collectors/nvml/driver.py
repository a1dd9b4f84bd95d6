"""The door to NVML: with ``driver_fields`` and ``driver_gpm`` the only importer of pynvml.

Every method blocks and may block for ever. What NVML refuses comes out as :class:`DriverFault` with our reason. Units
are converted here, once: milliwatts to watts, millijoules to joules, bytes to MiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import pynvml

from collectors.errors import FieldFailure

_T = TypeVar("_T")

_MIB = 1 << 20
_PERFORMANCE_STATE_MAX = 15
"""NVML says 32 where it does not know the P-state."""
NOT_AVAILABLE = frozenset({(1 << 64) - 1, (1 << 32) - 1})
"""NVML_VALUE_NOT_AVAILABLE (-1) as the unsigned types show it."""
INT64_MAX = (1 << 63) - 1
"""Counters travel as 64 bits with a sign. At a gigabyte a second a counter of bytes takes 292 years to get there."""
MIG_DEVICES_MAX = 64
"""Seven today. A driver that says more than this is not believed."""

THRESHOLD_SHUTDOWN: int = pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN
THRESHOLD_SLOWDOWN: int = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
THRESHOLD_MEMORY_MAX: int = pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX
THRESHOLD_GPU_MAX: int = pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX
"""Which limit :meth:`Device.temperature_threshold_celsius` gives."""

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
    pynvml.NVML_ERROR_RESET_REQUIRED: FieldFailure.RESET_REQUIRED,
}
RESTART_CODES = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
_PROCESSES = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
)
"""Three kinds of use, each with the name of drivers before 510."""


class DriverFault(Exception):
    """NVML has refused a call. ``reason`` is ours, ``code`` is NVML's.

    ``lasting`` says that asking again at once is of no use: this card or this driver does not have it.
    """

    def __init__(self, reason: FieldFailure, code: int, message: str, *, lasting: bool = False) -> None:
        super().__init__(f"{message} (NVML code {code})")
        self.reason = reason
        self.code = code
        self.lasting = lasting

    @property
    def library_missing(self) -> bool:
        """Whether there is no NVML library at all."""
        return self.code == int(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    @property
    def needs_restart(self) -> bool:
        """Whether this process will not speak with the driver again: it was unloaded, or is another one now."""
        return self.code in RESTART_CODES

    @property
    def not_found(self) -> bool:
        """Whether what was asked for is not there, as a MIG instance that was removed."""
        return self.code == int(pynvml.NVML_ERROR_NOT_FOUND)


class Driver:
    """NVML, initialised by :meth:`open`."""

    def open(self) -> None:
        """Load the library and start it. Raises :class:`DriverFault`."""
        _call(pynvml.nvmlInit)

    def close(self) -> None:
        """Shut the library down."""
        _call(pynvml.nvmlShutdown)

    def versions(self) -> dict[str, str | None]:
        """Of the driver, of the newest CUDA that it can run, and of NVML. Raises if the driver does not say its own."""
        cuda = _if_given(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "driver_version": str(_call(pynvml.nvmlSystemGetDriverVersion)),
            "cuda_version": None if cuda is None else f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}",
            "nvml_version": _if_given(pynvml.nvmlSystemGetNVMLVersion),
        }

    def count(self) -> int:
        """How many GPUs the driver shows."""
        return int(_call(pynvml.nvmlDeviceGetCount))

    def device(self, index: int) -> "Device":
        """The GPU at ``index``, in NVML's order (by PCI bus)."""
        return Device(_call(pynvml.nvmlDeviceGetHandleByIndex, index))


@dataclass(frozen=True, slots=True)
class Instance:
    """One MIG instance. ``name`` is NVIDIA's, such as ``NVIDIA H100 80GB HBM3 MIG 1g.10gb``."""

    device: "Device"
    gpu_instance: int
    compute_instance: int
    uuid: str
    name: str

    @property
    def text(self) -> str:
        """GPU instance and compute instance as rows have them, such as ``9/0``."""
        return f"{self.gpu_instance}/{self.compute_instance}"


class Device:
    """One GPU, or one MIG instance of it. Every method raises :class:`DriverFault`. ``handle`` is NVML's."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def uuid(self) -> str:
        """``GPU-...`` or ``MIG-...``, the same for the life of the card or the instance."""
        return str(_call(pynvml.nvmlDeviceGetUUID, self.handle))

    def name(self) -> str:
        """The product's name."""
        return str(_call(pynvml.nvmlDeviceGetName, self.handle))

    def about(self) -> dict[str, str | None]:
        """What does not change: its name, where it is, and which card it is; ``None`` where it does not say."""
        return {
            "name": self.name(),
            "pci": _if_given(lambda handle: pynvml.nvmlDeviceGetPciInfo(handle).busId, self.handle),
            "serial": _if_given(pynvml.nvmlDeviceGetSerial, self.handle),
            "board_part_number": _if_given(pynvml.nvmlDeviceGetBoardPartNumber, self.handle),
            "vbios_version": _if_given(pynvml.nvmlDeviceGetVbiosVersion, self.handle),
        }

    def pci(self) -> str:
        """Where it is: domain, bus, device and function, as ``00000000:1B:00.0``."""
        return str(_call(pynvml.nvmlDeviceGetPciInfo, self.handle).busId)

    def process_ids(self) -> list[int]:
        """The processes that have it open: for computing, by way of MPS, or for graphics; each once, in order."""
        found: set[int] = set()
        faults: list[DriverFault] = []
        for new, old in _PROCESSES:
            try:
                listed = _newer(partial(new, self.handle), partial(old, self.handle))
                found.update(int(process.pid) for process in listed)
            except DriverFault as fault:
                faults.append(fault)
        if len(faults) == len(_PROCESSES):
            raise faults[0]
        return sorted(found)

    def mig_enabled(self) -> bool:
        """Whether the GPU is divided into MIG instances now."""
        return bool(_call(pynvml.nvmlDeviceGetMigMode, self.handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)

    def instances(self) -> list[Instance]:
        """Its MIG instances, in NVML's order."""
        places = min(int(_call(pynvml.nvmlDeviceGetMaxMigDeviceCount, self.handle)), MIG_DEVICES_MAX)
        return [found for index in range(places) if (found := self._instance(index)) is not None]

    def _instance(self, index: int) -> Instance | None:
        try:
            device = Device(_call(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, self.handle, index))
            gpu = int(_call(pynvml.nvmlDeviceGetGpuInstanceId, device.handle))
            compute = int(_call(pynvml.nvmlDeviceGetComputeInstanceId, device.handle))
            return Instance(device, gpu, compute, device.uuid(), device.name())
        except DriverFault as fault:
            if fault.not_found:
                return None
            raise

    def utilization_percent(self) -> tuple[float, float]:
        """GPU and memory copy."""
        rates = _call(pynvml.nvmlDeviceGetUtilizationRates, self.handle)
        return float(rates.gpu), float(rates.memory)

    def memory_mib(self) -> tuple[float, float, float]:
        """Used (without what the driver reserves), total and free."""
        memory = _newer(
            lambda: pynvml.nvmlDeviceGetMemoryInfo(self.handle, pynvml.nvmlMemory_v2),
            lambda: pynvml.nvmlDeviceGetMemoryInfo(self.handle),
        )
        return _available(memory.used) / _MIB, _available(memory.total) / _MIB, _available(memory.free) / _MIB

    def memory_reserved_mib(self) -> float:
        """What driver and firmware keep for themselves."""
        memory = _call(pynvml.nvmlDeviceGetMemoryInfo, self.handle, pynvml.nvmlMemory_v2)
        return _available(memory.reserved) / _MIB

    def encoder_percent(self) -> float:
        """Use of the video encoder."""
        return float(_call(pynvml.nvmlDeviceGetEncoderUtilization, self.handle)[0])

    def decoder_percent(self) -> float:
        """Use of the video decoder."""
        return float(_call(pynvml.nvmlDeviceGetDecoderUtilization, self.handle)[0])

    def temperature_celsius(self) -> float:
        """Of the core."""
        sensor = pynvml.NVML_TEMPERATURE_GPU
        celsius = _newer(
            lambda: pynvml.nvmlDeviceGetTemperatureV(self.handle, sensor),
            lambda: pynvml.nvmlDeviceGetTemperature(self.handle, sensor),
        )
        return float(celsius)

    def temperature_margin_celsius(self) -> float:
        """Degrees left until it slows down; below zero it is slowed down."""
        return float(_call(pynvml.nvmlDeviceGetMarginTemperature, self.handle))

    def temperature_threshold_celsius(self, threshold: int) -> float:
        """One of the ``THRESHOLD_``. Ada and later give margins instead, as fields."""
        return float(_call(pynvml.nvmlDeviceGetTemperatureThreshold, self.handle, threshold))

    def power_watts(self) -> float:
        """Of the board; from Ampere on the mean of a second."""
        return float(_call(pynvml.nvmlDeviceGetPowerUsage, self.handle)) / 1e3

    def power_limit_watts(self) -> float:
        """What is enforced now."""
        return float(_call(pynvml.nvmlDeviceGetEnforcedPowerLimit, self.handle)) / 1e3

    def sm_clock_mhz(self) -> float:
        """Of the multiprocessors."""
        return float(_call(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_SM))

    def memory_clock_mhz(self) -> float:
        """Of the device memory."""
        return float(_call(pynvml.nvmlDeviceGetClockInfo, self.handle, pynvml.NVML_CLOCK_MEM))

    def performance_state(self) -> float:
        """0 to 15."""
        state = int(_call(pynvml.nvmlDeviceGetPerformanceState, self.handle))
        if not 0 <= state <= _PERFORMANCE_STATE_MAX:
            raise unavailable()
        return float(state)

    def clocks_event_reasons(self) -> int:
        """The bitmask."""
        reasons = _newer(
            lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle),
            lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle),
        )
        return _counted(int(reasons))

    def pcie_link_generation(self) -> float:
        """As it runs now."""
        return float(_call(pynvml.nvmlDeviceGetCurrPcieLinkGeneration, self.handle))

    def pcie_link_width(self) -> float:
        """Lanes, as it runs now."""
        return float(_call(pynvml.nvmlDeviceGetCurrPcieLinkWidth, self.handle))

    def pcie_link_generation_max(self) -> float:
        """What card and slot allow."""
        return float(_call(pynvml.nvmlDeviceGetMaxPcieLinkGeneration, self.handle))

    def pcie_link_width_max(self) -> float:
        """Lanes that card and slot allow."""
        return float(_call(pynvml.nvmlDeviceGetMaxPcieLinkWidth, self.handle))

    def fabric(self) -> tuple[float, float, float | None, int]:
        """State, status, health and the mask of the health of the NVLink fabric. Health is not in older drivers."""
        new, old = pynvml.c_nvmlGpuFabricInfo_v3_t(), pynvml.c_nvmlGpuFabricInfo_v2_t()
        try:
            _call(pynvml.nvmlDeviceGetGpuFabricInfoV, self.handle, pynvml.byref(new))
        except DriverFault as fault:
            if not fault.lasting:
                raise
            _call(pynvml.nvmlDeviceGetGpuFabricInfoV, self.handle, pynvml.byref(old))
            return float(old.state), float(old.status), None, int(old.healthMask)
        return float(new.state), float(new.status), float(new.healthSummary), int(new.healthMask)

    def sram_ecc(self) -> tuple[int, int, int, int, float]:
        """Corrected and uncorrected volatile, corrected and uncorrected aggregate, and whether they are too many."""
        status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
        _call(pynvml.nvmlDeviceGetSramEccErrorStatus, self.handle, pynvml.byref(status))
        volatile = _counted(status.volatileUncParity) + _counted(status.volatileUncSecDed)
        aggregate = _counted(status.aggregateUncParity) + _counted(status.aggregateUncSecDed)
        exceeded = float(status.bThresholdExceeded != 0)
        return _counted(status.volatileCor), volatile, _counted(status.aggregateCor), aggregate, exceeded

    def row_remap_spares(self) -> tuple[float, float, float, float, float]:
        """Memory banks by how many spare rows they have: all, many, some, few, none."""
        banks = _call(pynvml.nvmlDeviceGetRowRemapperHistogram, self.handle)
        return float(banks.max), float(banks.high), float(banks.partial), float(banks.low), float(banks.none)

    def memory_unrepairable(self) -> float:
        """1 or 0."""
        return float(_call(pynvml.nvmlDeviceGetUnrepairableMemoryFlag_v1, self.handle) != 0)


def function(name: str) -> Callable[..., int]:
    """A function of the library as it is, for calls whose structures are made once. Raises :class:`DriverFault`."""
    found: Callable[..., int] = _call(pynvml._nvmlGetFunctionPointer, name)
    return found


def _if_given(ask: Callable[..., Any], *arguments: Any) -> Any:
    """What the driver says, ``None`` where it does not have it."""
    try:
        return _call(ask, *arguments)
    except DriverFault:
        return None


def _newer(new: Callable[[], Any], old: Callable[[], Any]) -> Any:
    """``new``, or ``old`` where the installed driver is from before it."""
    try:
        return _call(new)
    except DriverFault as fault:
        if fault.reason is not FieldFailure.UNSUPPORTED:
            raise
        return _call(old)


def _available(number: int) -> int:
    if number in NOT_AVAILABLE:
        raise unavailable()
    return number


def _counted(number: int) -> int:
    if _available(number) > INT64_MAX:
        raise implausible()
    return number


def not_supported() -> DriverFault:
    """This card or this driver does not have it."""
    return fault_of(pynvml.NVML_ERROR_NOT_SUPPORTED)


def unavailable() -> DriverFault:
    """The driver has it and gives its mark for 'not available' instead, this time."""
    code = pynvml.NVML_ERROR_NOT_SUPPORTED
    return DriverFault(FieldFailure.UNSUPPORTED, code, "the driver gives its mark for 'not available'")


def implausible() -> DriverFault:
    """The driver says what cannot be: a number that no counter reaches, or a type that is not known."""
    return DriverFault(FieldFailure.DRIVER_ERROR, pynvml.NVML_ERROR_UNKNOWN, "the driver gives an impossible value")


def fault_of(code: int) -> DriverFault:
    """What a code of NVML means here."""
    reason = _REASONS.get(code, FieldFailure.DRIVER_ERROR)
    lasting = reason is FieldFailure.UNSUPPORTED
    return DriverFault(reason, code, str(pynvml.NVMLError(code)), lasting=lasting)


known_fault = lru_cache(maxsize=64)(fault_of)
"""As :func:`fault_of`, for a fault that is kept as an answer and never raised: a raised one gathers its tracebacks."""


def _call(function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise fault_of(error.value) from error
