"""What dcgm-exporter calls its fields, in three generations of names, and which metric of ours each is.

DCGM has renamed its fields twice: the exporters of 2019 said ``dcgm_gpu_temp``, those of DCGM 2 to 4.5 say
``DCGM_FI_DEV_GPU_TEMP``, and DCGM 4.6 says ``DCGM_FI_DEV_GPU_TEMP_CELSIUS``. The number of a field has stayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

MIB = 1 << 20
XID_ID = 230
PREFIX, PROFILING = "DCGM_FI_DEV_", "DCGM_FI_PROF_"


@dataclass(frozen=True, slots=True)
class DcgmField:
    """A field of DCGM. Its value times ``factor`` is the metric. Under one of its ``ratio_names`` a value of up to 1 is
    a share of 1 and not of 100."""

    id: int
    names: tuple[str, ...]
    metric: str
    factor: float = 1.0
    ratio_names: tuple[str, ...] = ()


def _dev(id_: int, metric: str, *names: str, factor: float = 1.0, ratio: tuple[str, ...] = ()) -> DcgmField:
    full = tuple(name if name.startswith("dcgm_") else PREFIX + name for name in (*names, *ratio))
    return DcgmField(id_, full, metric, factor, tuple(PREFIX + name for name in ratio))


def _prof(id_: int, metric: str, *names: str) -> DcgmField:
    return DcgmField(id_, tuple(PROFILING + name for name in names), metric)


_NS = 1e-9
_FLIT = (
    "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLINK_CRC_FLIT_ERROR_TOTAL", "dcgm_nvlink_flit_crc_error_count_total",
)  # fmt: skip
_REPLAY = (
    "NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLINK_REPLAY_ERROR_TOTAL", "dcgm_nvlink_replay_error_count_total",
)  # fmt: skip
_RECOVERY = (
    "NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLINK_RECOVERY_ERROR_TOTAL", "dcgm_nvlink_recovery_error_count_total",
)  # fmt: skip
_COPY = ("MEM_COPY_UTIL", "dcgm_mem_copy_utilization")
FIELDS: tuple[DcgmField, ...] = (
    _dev(100, "sm_clock_mhz", "SM_CLOCK", "SM_CLOCK_MHZ", "dcgm_sm_clock"),
    _dev(101, "memory_clock_mhz", "MEM_CLOCK", "MEM_CLOCK_MHZ", "dcgm_memory_clock"),
    _dev(112, "clocks_event_reasons", "CLOCK_THROTTLE_REASONS", "CLOCKS_EVENT_REASONS"),
    _dev(140, "memory_temperature_celsius", "MEMORY_TEMP", "MEMORY_TEMP_CELSIUS", "dcgm_memory_temp"),
    _dev(150, "temperature_celsius", "GPU_TEMP", "GPU_TEMP_CELSIUS", "dcgm_gpu_temp"),
    _dev(155, "power_watts", "POWER_USAGE", "BOARD_POWER_WATTS", "dcgm_power_usage"),
    _dev(156, "energy_joules", "TOTAL_ENERGY_CONSUMPTION", "dcgm_total_energy_consumption", factor=1e-3),
    _dev(157, "power_instant_watts", "POWER_USAGE_INSTANT", "BOARD_POWER_INSTANT_WATTS"),
    _dev(164, "power_limit_watts", "ENFORCED_POWER_LIMIT", "ENFORCED_POWER_LIMIT_WATTS"),
    _dev(190, "performance_state", "PSTATE"),
    _dev(202, "pcie_replay_count", "PCIE_REPLAY_COUNTER", "PCIE_REPLAY_TOTAL", "dcgm_pcie_replay_counter"),
    _dev(203, "gpu_utilization_percent", "GPU_UTIL", "dcgm_gpu_utilization", ratio=("GPU_UTIL_RATIO",)),
    _dev(204, "memory_copy_utilization_percent", *_COPY, ratio=("MEM_COPY_UTIL_RATIO",)),
    _dev(206, "encoder_utilization_percent", "ENC_UTIL", "dcgm_enc_utilization", ratio=("ENC_UTIL_RATIO",)),
    _dev(207, "decoder_utilization_percent", "DEC_UTIL", "dcgm_dec_utilization", ratio=("DEC_UTIL_RATIO",)),
    _dev(235, "pcie_link_generation_max", "PCIE_MAX_LINK_GEN"),
    _dev(236, "pcie_link_width_max", "PCIE_MAX_LINK_WIDTH"),
    _dev(237, "pcie_link_generation", "PCIE_LINK_GEN"),
    _dev(238, "pcie_link_width", "PCIE_LINK_WIDTH"),
    _dev(240, "power_cap_seconds", "POWER_VIOLATION", "dcgm_power_violation", factor=_NS),
    _dev(241, "thermal_policy_seconds", "THERMAL_VIOLATION", "dcgm_thermal_violation", factor=_NS),
    _dev(242, "sync_boost_seconds", "SYNC_BOOST_VIOLATION", "dcgm_sync_boost_violation", factor=_NS),
    _dev(243, "board_limit_seconds", "BOARD_LIMIT_VIOLATION", "dcgm_board_limit_violation", factor=_NS),
    _dev(244, "low_utilization_seconds", "LOW_UTIL_VIOLATION", "dcgm_low_util_violation", factor=_NS),
    _dev(245, "reliability_limit_seconds", "RELIABILITY_VIOLATION", "dcgm_reliability_violation", factor=_NS),
    _dev(246, "below_application_clocks_seconds", "TOTAL_APP_CLOCKS_VIOLATION", factor=_NS),
    _dev(247, "below_base_clocks_seconds", "TOTAL_BASE_CLOCKS_VIOLATION", factor=_NS),
    _dev(250, "memory_total_mib", "FB_TOTAL", "FB_TOTAL_MB"),
    _dev(251, "memory_free_mib", "FB_FREE", "FB_FREE_MB", "dcgm_fb_free"),
    _dev(252, "memory_used_mib", "FB_USED", "FB_USED_MB", "dcgm_fb_used"),
    _dev(253, "memory_reserved_mib", "FB_RESERVED", "FB_RESERVED_MB"),
    _dev(310, "ecc_corrected_volatile_count", "ECC_SBE_VOL_TOTAL", "dcgm_ecc_sbe_volatile_total"),
    _dev(311, "ecc_uncorrected_volatile_count", "ECC_DBE_VOL_TOTAL", "dcgm_ecc_dbe_volatile_total"),
    _dev(312, "ecc_corrected_aggregate_count", "ECC_SBE_AGG_TOTAL", "dcgm_ecc_sbe_aggregate_total"),
    _dev(313, "ecc_uncorrected_aggregate_count", "ECC_DBE_AGG_TOTAL", "dcgm_ecc_dbe_aggregate_total"),
    _dev(390, "retired_page_corrected_count", "RETIRED_SBE", "PAGE_RETIRED_SBE_TOTAL", "dcgm_retired_pages_sbe"),
    _dev(391, "retired_page_uncorrected_count", "RETIRED_DBE", "PAGE_RETIRED_DBE_TOTAL", "dcgm_retired_pages_dbe"),
    _dev(392, "retired_page_pending", "RETIRED_PENDING", "PAGE_RETIRED_PENDING", "dcgm_retired_pages_pending"),
    _dev(393, "row_remap_uncorrected_count", "UNCORRECTABLE_REMAPPED_ROWS", "ROW_REMAP_UNCORRECTABLE_TOTAL"),
    _dev(394, "row_remap_corrected_count", "CORRECTABLE_REMAPPED_ROWS", "ROW_REMAP_CORRECTABLE_TOTAL"),
    _dev(395, "row_remap_failed", "ROW_REMAP_FAILURE", "ROW_REMAP_FAILED"),
    _dev(396, "row_remap_pending", "ROW_REMAP_PENDING"),
    _dev(
        409,
        "nvlink_crc_error_count",
        "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
        "NVLINK_CRC_FLIT_ERROR_TOTAL",
        "dcgm_nvlink_flit_crc_error_count_total",
    ),
    _dev(
        429,
        "nvlink_replay_count",
        "NVLINK_REPLAY_ERROR_COUNT_TOTAL",
        "NVLINK_REPLAY_ERROR_TOTAL",
        "dcgm_nvlink_replay_error_count_total",
    ),
    _dev(
        439,
        "nvlink_recovery_count",
        "NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
        "NVLINK_RECOVERY_ERROR_TOTAL",
        "dcgm_nvlink_recovery_error_count_total",
    ),
    _prof(1001, "graphics_active_ratio", "GR_ENGINE_ACTIVE", "GR_ENGINE_UTIL_RATIO"),
    _prof(1002, "sm_active_ratio", "SM_ACTIVE", "SM_UTIL_RATIO"),
    _prof(1003, "sm_occupancy_ratio", "SM_OCCUPANCY", "SM_OCCUPANCY_RATIO"),
    _prof(1004, "tensor_active_ratio", "PIPE_TENSOR_ACTIVE", "TENSOR_UTIL_RATIO"),
    _prof(1005, "dram_active_ratio", "DRAM_ACTIVE", "DRAM_UTIL_RATIO"),
    _prof(1006, "fp64_active_ratio", "PIPE_FP64_ACTIVE", "FP64_UTIL_RATIO"),
    _prof(1007, "fp32_active_ratio", "PIPE_FP32_ACTIVE", "FP32_UTIL_RATIO"),
    _prof(1008, "fp16_active_ratio", "PIPE_FP16_ACTIVE", "FP16_UTIL_RATIO"),
    _prof(1009, "pcie_tx_bytes_per_second", "PCIE_TX_BYTES"),
    _prof(1010, "pcie_rx_bytes_per_second", "PCIE_RX_BYTES"),
    _prof(1011, "nvlink_tx_bytes_per_second", "NVLINK_TX_BYTES"),
    _prof(1012, "nvlink_rx_bytes_per_second", "NVLINK_RX_BYTES"),
    _prof(1013, "tensor_imma_active_ratio", "PIPE_TENSOR_IMMA_ACTIVE"),
    _prof(1014, "tensor_hmma_active_ratio", "PIPE_TENSOR_HMMA_ACTIVE"),
    _prof(1015, "tensor_dfma_active_ratio", "PIPE_TENSOR_DFMA_ACTIVE"),
    _prof(1016, "integer_active_ratio", "PIPE_INT_ACTIVE", "INT_UTIL_RATIO"),
)
"""Fields of a GPU."""

LINK_FIELDS: tuple[DcgmField, ...] = (
    _dev(409, "crc_error_count", "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLINK_CRC_FLIT_ERROR_TOTAL"),
    _dev(429, "replay_count", "NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLINK_REPLAY_ERROR_TOTAL"),
    _dev(439, "recovery_count", "NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLINK_RECOVERY_ERROR_TOTAL"),
    _dev(1201, "tx_bytes", "NVLINK_COUNT_TX_BYTES", "NVLINK_TX_BYTES_TOTAL"),
    _dev(1203, "rx_bytes", "NVLINK_COUNT_RX_BYTES", "NVLINK_RX_BYTES_TOTAL"),
)
"""The same of one NVLink, where a row names its link."""

XID_NAMES = frozenset({PREFIX + "XID_ERRORS", PREFIX + "XID_ERROR", "DCGM_XID_ERRORS"})
LEFT_ALONE: Mapping[str, str] = {
    PREFIX + "NVLINK_BANDWIDTH_TOTAL": "DCGM gives megabytes a second under the name and type of a counter",
    PREFIX + "NVLINK_THROUGHPUT_TOTAL": "as NVLINK_BANDWIDTH_TOTAL",
    PREFIX + "NVLINK_BANDWIDTH_L0": "as NVLINK_BANDWIDTH_TOTAL",
    PREFIX + "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": "NVML counts an error of data as one of a flit too",
    PREFIX + "VGPU_LICENSE_STATUS": "a licence trains nothing",
    "DCGM_EXP_CLOCK_EVENTS_COUNT": "counts of a window; clocks_event_reasons has what they are made of",
    "DCGM_EXP_XID_ERRORS_COUNT": "counts of a window, which fall again",
    "DCGM_EXP_GPU_HEALTH_STATUS": "DCGM's own judgement, which has no number",
    "DCGM_EXP_P2P_STATUS": "DCGM's own judgement of pairs of GPUs",
    "DCGM_NVLINK_BANDWIDTH_TOTAL": "as NVLINK_BANDWIDTH_TOTAL",
    "DCGM_NVLINK_DATA_CRC_ERROR_COUNT_TOTAL": "as NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
}
"""What the exporter's own lists of fields have and this client does not read, with the reason."""


def _by_name(fields: tuple[DcgmField, ...]) -> dict[str, DcgmField]:
    return {name.upper(): field for field in fields for name in field.names}


GPU_NAMES = _by_name(FIELDS)
LINK_NAMES = _by_name(LINK_FIELDS)


@lru_cache(maxsize=4_096)
def gpu_field(name: str) -> DcgmField | None:
    """The field of a GPU with this name, in any generation and in small letters too."""
    return GPU_NAMES.get(name.upper())


@lru_cache(maxsize=4_096)
def link_field(name: str) -> DcgmField | None:
    """The field of an NVLink with this name."""
    return LINK_NAMES.get(name.upper())


def sources() -> dict[str, str]:
    """Which field each metric comes from, for the documentation."""
    return {field.metric: f"{field.id} {field.names[0]}" for field in FIELDS}


def link_sources() -> dict[str, str]:
    """As :func:`sources`, for the metrics of an NVLink."""
    return {field.metric: f"{field.id} {field.names[0]} of each link" for field in LINK_FIELDS}
