"""The closed sets of metrics: name, unit, kind and meaning of every measured column of ``gpu/1`` and ``link/1``.

A metric's name ends in its unit. Gauges are float32. Counters are int64 (or float64 where the device gives a fraction),
never float32: after months a float32 energy counter moves in steps of hundreds of joules. Schemas, documentation and
dashboards are made from this table; a column is added at its end, never renamed, retyped or moved.
"""

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """How a metric is read."""

    GAUGE = "gauge"
    COUNTER = "counter"
    BITMASK = "bitmask"


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured column of ``gpu/1`` or ``link/1``.

    ``arrow`` is the Arrow type's name: ``float``, ``double`` or ``int64``.
    """

    name: str
    kind: MetricKind
    arrow: str
    meaning: str


def _gauge(name: str, meaning: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, "float", meaning)


def _counter(name: str, meaning: str, arrow: str = "int64") -> Metric:
    return Metric(name, MetricKind.COUNTER, arrow, meaning)


GPU_METRICS: tuple[Metric, ...] = (
    _gauge("gpu_utilization_percent", "Share of the last sample period in which a kernel ran."),
    _gauge(
        "memory_copy_utilization_percent", "Share of the last sample period in which device memory was read or written."
    ),
    _gauge("memory_used_mib", "Device memory in use."),
    _gauge("memory_total_mib", "Device memory in all."),
    _gauge("temperature_celsius", "Temperature of the GPU core."),
    _gauge("memory_temperature_celsius", "Temperature of the device memory."),
    _gauge("power_watts", "Board power, as averaged by the driver."),
    _gauge("power_limit_watts", "Enforced power limit."),
    _counter("energy_joules", "Energy since the driver was loaded.", "double"),
    _gauge("sm_clock_mhz", "Clock of the streaming multiprocessors."),
    _gauge("memory_clock_mhz", "Clock of the device memory."),
    _gauge("performance_state", "P-state, 0 (fastest) to 15."),
    Metric("clocks_event_reasons", MetricKind.BITMASK, "int64", "Why clocks are held down; bits as NVML defines them."),
    _gauge("sm_active_ratio", "Share of cycles with a warp resident on an SM, 0 to 1."),
    _gauge("tensor_active_ratio", "Share of cycles in which a tensor pipe was busy, 0 to 1."),
    _gauge("dram_active_ratio", "Share of cycles in which device memory was sending or receiving, 0 to 1."),
    _gauge("fp16_active_ratio", "Share of cycles in which the FP16 pipe was busy, 0 to 1."),
    _gauge("pcie_tx_bytes_per_second", "PCIe traffic sent by the GPU."),
    _gauge("pcie_rx_bytes_per_second", "PCIe traffic received by the GPU."),
    _gauge("nvlink_tx_bytes_per_second", "NVLink traffic sent by the GPU, over all links."),
    _gauge("nvlink_rx_bytes_per_second", "NVLink traffic received by the GPU, over all links."),
    _gauge("pcie_link_generation", "Generation at which the PCIe link runs now."),
    _gauge("pcie_link_width", "Lanes with which the PCIe link runs now."),
    _counter("pcie_replay_count", "PCIe packets sent again."),
    _counter("ecc_corrected_volatile_count", "Corrected ECC errors since the driver was loaded."),
    _counter("ecc_uncorrected_volatile_count", "Uncorrected ECC errors since the driver was loaded."),
    _counter("row_remap_uncorrected_count", "Memory rows remapped after uncorrectable errors."),
    _gauge("row_remap_pending", "1 if a row remap waits for a reset, else 0."),
    _gauge("row_remap_failed", "1 if a row remap has failed, else 0."),
    _gauge("power_instant_watts", "Board power at one instant."),
    _gauge("graphics_active_ratio", "Share of cycles in which any part of the graphics engine was busy, 0 to 1."),
    _gauge("sm_occupancy_ratio", "Resident warps as a share of the most that the SMs can hold, 0 to 1."),
    _gauge("pcie_link_generation_max", "Highest generation that the PCIe link can run at."),
    _gauge("pcie_link_width_max", "Most lanes that the PCIe link can run with."),
    _counter("power_cap_seconds", "Time with clocks held down by the software power cap, a normal state.", "double"),
    _counter("power_brake_seconds", "Time with clocks held down by the external power brake.", "double"),
    _counter("software_thermal_slowdown_seconds", "Time with clocks held down by the driver for heat.", "double"),
    _counter("hardware_thermal_slowdown_seconds", "Time with clocks held down by hardware for heat.", "double"),
    _counter("ecc_corrected_aggregate_count", "Corrected ECC errors in the life of the GPU."),
    _counter("ecc_uncorrected_aggregate_count", "Uncorrected ECC errors in the life of the GPU."),
    _counter("row_remap_corrected_count", "Memory rows remapped after correctable errors."),
    _counter("nvlink_crc_error_count", "NVLink CRC errors, over all links."),
    _counter("nvlink_replay_count", "NVLink packets sent again, over all links."),
    _counter("nvlink_recovery_count", "NVLink recoveries, over all links."),
    _gauge(
        "recovery_action", "What the driver asks for: 0 nothing, 1 GPU reset, 2 reboot, 3 drain, 4 drain and reset."
    ),
)

GPU_METRIC_NAMES: tuple[str, ...] = tuple(metric.name for metric in GPU_METRICS)

LINK_METRICS: tuple[Metric, ...] = (
    _gauge("up", "1 if the link carries data, else 0."),
    _gauge("rate_gigabits_per_second", "Rate at which the link runs now."),
    _counter("tx_bytes", "Bytes sent."),
    _counter("rx_bytes", "Bytes received."),
)

LINK_METRIC_NAMES: tuple[str, ...] = tuple(metric.name for metric in LINK_METRICS)
