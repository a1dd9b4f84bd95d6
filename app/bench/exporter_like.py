"""A peer's process: the driver asked once a second with NVIDIA's plain Python binding, served as Prometheus text.

The default quantities of dcgm-exporter, one call for each and one field value call for each field, as a script of
somebody who needs a few numbers does it. It ends when it is told to.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pynvml
from prometheus_client import CollectorRegistry, Gauge, generate_latest

FIELDS = {
    "memory_temp": pynvml.NVML_FI_DEV_MEMORY_TEMP,
    "energy": pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    "pcie_replay": pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER,
    "ecc_sbe_volatile": pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    "ecc_dbe_volatile": pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    "ecc_sbe_aggregate": pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL,
    "ecc_dbe_aggregate": pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL,
    "remapped_correctable": pynvml.NVML_FI_DEV_REMAPPED_COR,
    "remapped_uncorrectable": pynvml.NVML_FI_DEV_REMAPPED_UNC,
    "remap_pending": pynvml.NVML_FI_DEV_REMAPPED_PENDING,
    "remap_failure": pynvml.NVML_FI_DEV_REMAPPED_FAILURE,
    "nvlink_crc": pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    "nvlink_replay": pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    "nvlink_recovery": pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
}
CALLS: dict[str, Callable[[Any], float]] = {
    "gpu_util": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "mem_copy_util": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).memory,
    "fb_used": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "fb_total": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total,
    "gpu_temp": lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
    "power": pynvml.nvmlDeviceGetPowerUsage,
    "power_limit": pynvml.nvmlDeviceGetEnforcedPowerLimit,
    "sm_clock": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
    "mem_clock": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
    "pstate": pynvml.nvmlDeviceGetPerformanceState,
    "clocks_event_reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
    "pcie_generation": pynvml.nvmlDeviceGetCurrPcieLinkGeneration,
    "pcie_width": pynvml.nvmlDeviceGetCurrPcieLinkWidth,
}


def main() -> int:
    """Poll for ever."""
    pynvml.nvmlInit()
    gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    registry = CollectorRegistry()
    gauges = {name: Gauge(f"peer_{name}", name, ["gpu"], registry=registry) for name in (*CALLS, *FIELDS)}
    tick = time.monotonic()
    while True:
        for index, gpu in enumerate(gpus):
            for name, call in CALLS.items():
                _set(gauges[name].labels(index), partial(call, gpu))
            for name, field in FIELDS.items():
                _set(gauges[name].labels(index), partial(_field, gpu, field))
        generate_latest(registry)
        tick += 1.0
        time.sleep(max(0.0, tick - time.monotonic()))


def _field(gpu: Any, field: int) -> float:
    (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [field])
    return float(value.value.ullVal)


def _set(gauge: Any, read: Callable[[], float]) -> None:
    try:
        gauge.set(read())
    except pynvml.NVMLError:
        return


if __name__ == "__main__":
    sys.exit(main())
