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


UNITS = {
    "gigabits_per_second": "Gbit/s",
    "bytes_per_second": "B/s",
    "_bit_error_ratio": "errors per bit",
    "_ratio": "0 to 1",
    "_percent": "%",
    "_mib": "MiB",
    "_bytes": "B",
    "_celsius": "°C",
    "_watts": "W",
    "_joules": "J",
    "_mhz": "MHz",
    "_seconds": "s",
    "_count": "count",
    "_packets": "packets",
    "_banks": "banks",
    "_links": "links",
    "_generation": "generation",
    "_generation_max": "generation",
    "_width": "lanes",
    "_width_max": "lanes",
}
"""What the end of a metric's name says of its unit, the longest first. Any other metric is a code that its meaning
explains."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured column of ``gpu/1`` or ``link/1``.

    ``arrow`` is the Arrow type's name: ``float``, ``double`` or ``int64``.
    """

    name: str
    kind: MetricKind
    arrow: str
    meaning: str

    @property
    def unit(self) -> str:
        """The unit for people to read; it is what the name ends in."""
        if self.kind is MetricKind.BITMASK:
            return "bits"
        if self.meaning.startswith("1 if"):
            return "0 or 1"
        return next((unit for ending, unit in UNITS.items() if self.name.endswith(ending)), "code")


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
    # Below, in order of how often they are read: each second, every 10 s, every 30 s (collectors/cost_class.py). Those
    # at the end that are null in every row of a frame are not sent.
    _gauge("memory_free_mib", "Device memory that nobody has."),
    _gauge("integer_active_ratio", "Share of cycles in which the integer pipe was busy, 0 to 1."),
    _gauge("fp32_active_ratio", "Share of cycles in which the FP32 pipe was busy, tensor cores aside, 0 to 1."),
    _gauge("fp64_active_ratio", "Share of cycles in which the FP64 pipe was busy, tensor cores aside, 0 to 1."),
    _gauge("tensor_hmma_active_ratio", "Share of cycles with 16-bit (and 8-bit float) tensor operations, 0 to 1."),
    _gauge("tensor_imma_active_ratio", "Share of cycles with integer tensor operations, 0 to 1."),
    _gauge("tensor_dfma_active_ratio", "Share of cycles with double precision tensor operations (DFMA), 0 to 1."),
    _gauge("tensor_dmma_active_ratio", "Share of cycles with double precision tensor operations (DMMA), 0 to 1."),
    _gauge("encoder_utilization_percent", "Use of the video encoder in the last sample period."),
    _gauge("decoder_utilization_percent", "Use of the video decoder in the last sample period."),
    _gauge("temperature_margin_celsius", "Degrees that are left until the GPU slows itself down for heat."),
    _counter("thermal_policy_seconds", "Time with clocks held down by the thermal policy as a whole.", "double"),
    _counter("sync_boost_seconds", "Time with clocks held down to those of the GPUs of the same group.", "double"),
    _counter("board_limit_seconds", "Time with clocks held down by a limit of the board.", "double"),
    _counter("low_utilization_seconds", "Time with clocks held down because there was little to do.", "double"),
    _counter("reliability_limit_seconds", "Time with clocks held down by the voltage for reliability.", "double"),
    _counter("below_application_clocks_seconds", "Time with clocks below those that were asked for.", "double"),
    _counter("below_base_clocks_seconds", "Time with clocks below the base clocks.", "double"),
    _counter("pcie_replay_rollover_count", "How often the counter of PCIe replays has begun anew."),
    _counter("pcie_recovery_count", "How often the PCIe link went from running (L0) into recovery."),
    _counter("pcie_correctable_error_count", "Correctable PCIe errors."),
    _counter("pcie_nak_received_count", "PCIe packets that the far end has refused."),
    _counter("pcie_nak_sent_count", "PCIe packets that the GPU has refused."),
    _counter("pcie_receiver_error_count", "PCIe receiver errors."),
    _counter("pcie_bad_tlp_count", "Bad PCIe transaction layer packets."),
    _counter("pcie_bad_dllp_count", "Bad PCIe data link layer packets."),
    _counter("pcie_lcrc_error_count", "PCIe packets whose link checksum was wrong."),
    _counter("pcie_lane_error_count", "Errors of PCIe lanes."),
    _counter("pcie_unsupported_request_count", "PCIe requests that were not supported."),
    _counter("pcie_non_fatal_error_count", "Uncorrectable PCIe errors that the link survived."),
    _counter("pcie_fatal_error_count", "PCIe errors that the link did not survive."),
    _gauge("fabric_state", "Joining the NVLink fabric: 0 not supported, 1 not started, 2 in progress, 3 completed."),
    _gauge("fabric_status", "Once joining has completed, with which code of NVML: 0 is success."),
    _gauge("fabric_health", "0 not supported, 1 healthy, 2 unhealthy, 3 limited capacity."),
    Metric("fabric_health_mask", MetricKind.BITMASK, "int64", "Health of the fabric in parts; bits as NVML has them."),
    _counter("sram_ecc_corrected_volatile_count", "Corrected ECC errors of caches and the like since driver load."),
    _counter("sram_ecc_uncorrected_volatile_count", "Uncorrected ECC errors of caches and the like since driver load."),
    _counter("sram_ecc_corrected_aggregate_count", "Corrected ECC errors of caches and the like in the GPU's life."),
    _counter("sram_ecc_uncorrected_aggregate_count", "Uncorrected ECC errors of caches and the like in its life."),
    _gauge("sram_ecc_threshold_exceeded", "1 if there were more such errors than NVIDIA allows: replace it; else 0."),
    _counter("retired_page_corrected_count", "Memory pages retired for corrected errors (before Ampere)."),
    _counter("retired_page_uncorrected_count", "Memory pages retired for uncorrected errors (before Ampere)."),
    _gauge("retired_page_pending", "1 if a page waits for a reboot to be retired, else 0."),
    _gauge("memory_reserved_mib", "Device memory that driver and firmware keep for themselves."),
    _gauge("temperature_slowdown_celsius", "Temperature at which hardware slows the GPU down."),
    _gauge("temperature_shutdown_celsius", "Temperature at which the GPU shuts down."),
    _gauge("temperature_max_celsius", "Highest temperature at which the GPU is meant to work."),
    _gauge("memory_temperature_max_celsius", "Highest temperature at which the memory is meant to work."),
    _gauge("temperature_slowdown_margin_celsius", "What the margin is where hardware slows the GPU down."),
    _gauge("temperature_shutdown_margin_celsius", "What the margin is where the GPU shuts down."),
    _gauge("temperature_max_margin_celsius", "What the margin is where the GPU falls below its base clock."),
    _gauge("memory_temperature_max_margin_celsius", "What the margin is where memory's heat slows the GPU down."),
    _counter("row_remap_corrected_inactive_count", "Rows remapped after correctable errors, no more in use."),
    _counter("row_remap_uncorrected_inactive_count", "Rows remapped after uncorrectable errors, no more in use."),
    _gauge("row_remap_spares_max_banks", "Memory banks with all their spare rows."),
    _gauge("row_remap_spares_high_banks", "Memory banks with many of their spare rows left."),
    _gauge("row_remap_spares_partial_banks", "Memory banks with some of their spare rows left."),
    _gauge("row_remap_spares_low_banks", "Memory banks with few of their spare rows left."),
    _gauge("row_remap_spares_none_banks", "Memory banks with no spare row left: the next bad row cannot be remapped."),
    _gauge("memory_unrepairable", "1 if memory is broken and cannot be repaired, else 0."),
    _gauge("nvlink_links", "NVLinks that the GPU has."),
    _gauge("nvlink_active_links", "NVLinks that are up."),
    _counter("nvlink_malformed_packet_count", "Malformed NVLink packets, over all links."),
    _counter("nvlink_buffer_overrun_count", "NVLink packets lost for want of a buffer, over all links."),
    _counter("nvlink_receive_error_count", "NVLink packets received with an error, over all links."),
    _counter("nvlink_receive_remote_error_count", "NVLink packets that the far end had marked bad, over all links."),
    _counter("nvlink_receive_general_error_count", "Other errors of receiving over NVLink, over all links."),
    _counter("nvlink_link_integrity_error_count", "How often NVLink errors passed a link's threshold, over all links."),
    _counter("nvlink_transmit_discard_count", "NVLink packets discarded before they were sent, over all links."),
    _counter("nvlink_recovery_succeeded_count", "NVLink recoveries that succeeded, over all links."),
    _counter("nvlink_recovery_failed_count", "NVLink recoveries that failed, over all links."),
    _counter("nvlink_effective_error_count", "NVLink errors left after error correction, over all links."),
    _counter("nvlink_symbol_error_count", "NVLink symbol errors, over all links."),
    _gauge("nvlink_effective_bit_error_ratio", "Errors per bit left after error correction, over all links."),
    _gauge("nvlink_symbol_bit_error_ratio", "Symbol errors per bit, over all links."),
    _counter("nvlink_fec_few_count", "NVLink blocks in which error correction mended 1 to 3 symbols, over all links."),
    _counter("nvlink_fec_some_count", "NVLink blocks in which error correction mended 4 to 7 symbols, over all links."),
    _counter("nvlink_fec_many_count", "NVLink blocks in which it mended 8 to 15 symbols: the link is near its limit."),
    _gauge("c2c_links", "Links between GPU and CPU in one module (NVLink-C2C) that the GPU has."),
    _gauge("c2c_active_links", "Links between GPU and CPU in one module that are up."),
    _gauge("c2c_max_bytes_per_second", "What the C2C links that are up can carry together."),
    _counter("c2c_interrupt_error_count", "Errors of C2C links that raised an interrupt, over all links."),
    _counter("c2c_replay_count", "C2C packets sent again, over all links."),
    _counter("c2c_replay_back_to_back_count", "C2C packets sent again right after a replay, over all links."),
)

GPU_METRIC_NAMES: tuple[str, ...] = tuple(metric.name for metric in GPU_METRICS)

LINK_METRICS: tuple[Metric, ...] = (
    _gauge("up", "1 if the link carries data, else 0."),
    _gauge("rate_gigabits_per_second", "Rate at which the link runs now."),
    _counter("tx_bytes", "Bytes sent."),
    _counter("rx_bytes", "Bytes received."),
    _counter("crc_error_count", "Packets whose checksum was wrong."),
    _counter("replay_count", "Packets sent again."),
    _counter("recovery_count", "How often the link has recovered from errors by itself."),
    _counter("symbol_error_count", "Symbols received with an error."),
    _counter("receive_error_count", "Packets received with an error."),
    _counter("link_integrity_error_count", "How often the link's errors passed its threshold."),
    _counter("transmit_discard_count", "Packets discarded before they were sent."),
    _counter("down_count", "How often the link went down."),
    _counter("tx_packets", "Packets sent."),
    _counter("rx_packets", "Packets received."),
    _counter("transmit_wait_count", "Ticks in which there was something to send and no leave to: congestion ahead."),
    _counter("receive_discard_count", "Packets received and thrown away by this node."),
    _counter("buffer_overrun_count", "Packets lost for want of a buffer."),
    _counter("remote_physical_error_count", "Packets received that the far end had marked bad."),
    _counter("out_of_sequence_count", "RDMA packets received out of their order: one before them was lost."),
    _counter("sequence_error_count", "RDMA packets that the far end asked for again."),
    _counter("ack_timeout_count", "RDMA packets sent again because no acknowledgement came."),
    _counter("not_ready_count", "RDMA sends given up because the far end had no buffer ready."),
    _counter("congestion_sent_count", "Congestion notifications sent to those who send too much to here."),
    _counter("congestion_received_count", "Congestion notifications received and heeded."),
    _counter("congestion_marked_count", "RoCE packets received that a switch on the way had marked as congested."),
    _counter("adaptive_retransmit_count", "Adaptive retransmissions of RoCE."),
)

LINK_METRIC_NAMES: tuple[str, ...] = tuple(metric.name for metric in LINK_METRICS)
