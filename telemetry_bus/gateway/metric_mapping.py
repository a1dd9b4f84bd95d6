"""What other people's series mean here: names and labels in, a column of ``gpu/1`` or a row of ``metric/1`` out. Pure.

The names are those of NVIDIA's dcgm-exporter, before and after DCGM 4.6 renamed some. A name whose unit cannot be told
is left out: in DCGM 4.6 ``DCGM_FI_DEV_GPU_UTIL_RATIO`` is another name of field 203 (0 to 100), in 4.7 a field of its
own (0 to 1). Units are converted here, once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from telemetry_bus.cells import INT32_MAX, INT64_MAX, METRIC_NAME, NAME
from telemetry_bus.metric_names import GPU_METRIC_NAMES, GPU_METRICS, MetricKind

JOULES_PER_MILLIJOULE = 1e-3
SECONDS_PER_NANOSECOND = 1e-9
FREE_MIB = "memory_free_mib"
RESERVED_MIB = "memory_reserved_mib"
COLUMNS = GPU_METRIC_NAMES

_DEV: dict[str, tuple[str, float]] = {
    "GPU_UTIL": ("gpu_utilization_percent", 1.0),
    "MEM_COPY_UTIL": ("memory_copy_utilization_percent", 1.0),
    "FB_USED": ("memory_used_mib", 1.0),
    "FB_TOTAL": ("memory_total_mib", 1.0),
    "FB_FREE": (FREE_MIB, 1.0),
    "FB_RESERVED": (RESERVED_MIB, 1.0),
    "GPU_TEMP": ("temperature_celsius", 1.0),
    "GPU_TEMP_CELSIUS": ("temperature_celsius", 1.0),
    "MEMORY_TEMP": ("memory_temperature_celsius", 1.0),
    "MEMORY_TEMP_CELSIUS": ("memory_temperature_celsius", 1.0),
    "POWER_USAGE": ("power_watts", 1.0),
    "BOARD_POWER_WATTS": ("power_watts", 1.0),
    "POWER_USAGE_INSTANT": ("power_instant_watts", 1.0),
    "ENFORCED_POWER_LIMIT": ("power_limit_watts", 1.0),
    "TOTAL_ENERGY_CONSUMPTION": ("energy_joules", JOULES_PER_MILLIJOULE),
    "SM_CLOCK": ("sm_clock_mhz", 1.0),
    "MEM_CLOCK": ("memory_clock_mhz", 1.0),
    "PSTATE": ("performance_state", 1.0),
    "GPU_PSTATE": ("performance_state", 1.0),
    "CLOCK_THROTTLE_REASONS": ("clocks_event_reasons", 1.0),
    "CLOCKS_EVENT_REASONS": ("clocks_event_reasons", 1.0),
    "CLOCKS_EVENT_REASON_SW_POWER_CAP_NS": ("power_cap_seconds", SECONDS_PER_NANOSECOND),
    "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS": ("software_thermal_slowdown_seconds", SECONDS_PER_NANOSECOND),
    "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS": ("hardware_thermal_slowdown_seconds", SECONDS_PER_NANOSECOND),
    "CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS": ("power_brake_seconds", SECONDS_PER_NANOSECOND),
    "PCIE_LINK_GEN": ("pcie_link_generation", 1.0),
    "PCIE_LINK_WIDTH": ("pcie_link_width", 1.0),
    "PCIE_MAX_LINK_GEN": ("pcie_link_generation_max", 1.0),
    "PCIE_MAX_LINK_WIDTH": ("pcie_link_width_max", 1.0),
    "PCIE_REPLAY_COUNTER": ("pcie_replay_count", 1.0),
    "PCIE_REPLAY_TOTAL": ("pcie_replay_count", 1.0),
    "ECC_SBE_VOL_TOTAL": ("ecc_corrected_volatile_count", 1.0),
    "ECC_DBE_VOL_TOTAL": ("ecc_uncorrected_volatile_count", 1.0),
    "ECC_SBE_AGG_TOTAL": ("ecc_corrected_aggregate_count", 1.0),
    "ECC_DBE_AGG_TOTAL": ("ecc_uncorrected_aggregate_count", 1.0),
    "CORRECTABLE_REMAPPED_ROWS": ("row_remap_corrected_count", 1.0),
    "ROW_REMAP_CORRECTABLE_TOTAL": ("row_remap_corrected_count", 1.0),
    "UNCORRECTABLE_REMAPPED_ROWS": ("row_remap_uncorrected_count", 1.0),
    "ROW_REMAP_UNCORRECTABLE_TOTAL": ("row_remap_uncorrected_count", 1.0),
    "ROW_REMAP_PENDING": ("row_remap_pending", 1.0),
    "ROW_REMAP_FAILURE": ("row_remap_failed", 1.0),
    "ROW_REMAP_FAILED": ("row_remap_failed", 1.0),
    "NVLINK_REPLAY_ERROR_COUNT_TOTAL": ("nvlink_replay_count", 1.0),
    "NVLINK_RECOVERY_ERROR_COUNT_TOTAL": ("nvlink_recovery_count", 1.0),
    "GET_GPU_RECOVERY_ACTION": ("recovery_action", 1.0),
}
_PROF: dict[str, tuple[str, float]] = {
    "GR_ENGINE_ACTIVE": ("graphics_active_ratio", 1.0),
    "GR_ENGINE_UTIL_RATIO": ("graphics_active_ratio", 1.0),
    "SM_ACTIVE": ("sm_active_ratio", 1.0),
    "SM_UTIL_RATIO": ("sm_active_ratio", 1.0),
    "SM_OCCUPANCY": ("sm_occupancy_ratio", 1.0),
    "SM_OCCUPANCY_RATIO": ("sm_occupancy_ratio", 1.0),
    "PIPE_TENSOR_ACTIVE": ("tensor_active_ratio", 1.0),
    "TENSOR_UTIL_RATIO": ("tensor_active_ratio", 1.0),
    "DRAM_ACTIVE": ("dram_active_ratio", 1.0),
    "DRAM_UTIL_RATIO": ("dram_active_ratio", 1.0),
    "PIPE_FP16_ACTIVE": ("fp16_active_ratio", 1.0),
    "PCIE_TX_BYTES": ("pcie_tx_bytes_per_second", 1.0),
    "PCIE_RX_BYTES": ("pcie_rx_bytes_per_second", 1.0),
    "NVLINK_TX_BYTES": ("nvlink_tx_bytes_per_second", 1.0),
    "NVLINK_RX_BYTES": ("nvlink_rx_bytes_per_second", 1.0),
}
DCGM_NAMES: Mapping[str, tuple[str, float]] = {
    **{f"DCGM_FI_DEV_{name}": meaning for name, meaning in _DEV.items()},
    **{f"DCGM_FI_PROF_{name}": meaning for name, meaning in _PROF.items()},
}
"""dcgm-exporter's name -> our column, and what a value is multiplied by."""

BLANK_INT64 = 2.0**63
"""DCGM's "no value" (blank, not found, not supported, not permitted; 9223372036854775792 and so on) of an int64 field:
as a float the four are this one."""
BLANK_FP64 = 140_737_488_355_328.0
BLANK_INT32 = 2_147_483_632.0
BLANKS = 4
"""Of a float and of an int32 field the four follow one another. Only gauges are such fields; a counter gets there."""

NODE_TEXT = re.compile(r"[^\x00-\x1f\x7f/]{1,252}")
"""``NODE/gpu`` is a source of the bus: at most 256 bytes, and the slash ends the node."""
UUID_BYTES_MAX = 96
"""``MIG-GPU-`` and a UUID with its two instances have 52."""
INSTANCE_BYTES_MAX = 32
ATTEMPT_DEFAULT = "0"
_INDEX = re.compile(r"[0-9]{1,10}")
_STEP = re.compile(r"-?[0-9]{1,19}")


class Unmapped(StrEnum):
    """Why a sample has no place here. Every value is a metric label and starts at zero."""

    UNKNOWN_NAME = "unknown_name"
    """Neither a name of the table nor a number that says which job and step it belongs to."""
    NO_GPU = "no_gpu"
    """A name of the table without the GPU's index, or of a link or a switch."""
    NO_NODE = "no_node"
    """A name of the table without a label that names the node."""
    BAD_LABEL = "bad_label"
    """A label that is here, but too long or not of its form."""
    OTHER_JOB = "other_job"
    """A row of another job than the one whose token was sent, or of a GPU: a job's token writes that job's rows."""
    NOT_A_NUMBER_SERIES = "not_a_number_series"
    """A histogram or a summary."""
    DELTA = "delta"
    """A sum since the last report, where a total is expected."""
    BAD_TIME = "bad_time"
    """A time before 1970 or after 2100."""
    BAD_VALUE = "bad_value"
    """A number that the column cannot hold: beyond its range, or a fraction where it counts."""


class Gpu(NamedTuple):
    """Whose row it is."""

    node: str
    gpu: int
    instance: str | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class GpuSeries:
    """Values of one column of one GPU. ``column`` is an index into :data:`COLUMNS`."""

    gpu: Gpu
    column: int
    scale: float


@dataclass(frozen=True, slots=True)
class JobSeries:
    """One named number of a job at a step."""

    job: str
    attempt: str
    rank: int
    step: int
    name: str
    layer: str | None


Series = GpuSeries | JobSeries | Unmapped
_COLUMN_OF = {name: number for number, name in enumerate(COLUMNS)}
GAUGES = frozenset(metric.name for metric in GPU_METRICS if metric.kind is MetricKind.GAUGE)


def series_of(name: str, labels: Mapping[str, str]) -> Series:
    """What a series means. Labels have ``_`` where OTLP has a dot (``host.name`` is ``host_name``)."""
    if (meaning := DCGM_NAMES.get(name)) is not None:
        return _gpu_series(labels, *meaning)
    job = labels.get("nantucket_job")
    step = labels.get("nantucket_step") or labels.get("step")
    if not job and step:
        job = labels.get("exported_job") or labels.get("job")
    if not job or not step:
        return Unmapped.UNKNOWN_NAME
    return _job_series(name, labels, job, step)


def _gpu_series(labels: Mapping[str, str], column: str, scale: float) -> GpuSeries | Unmapped:
    index = labels.get("gpu", "")
    if not index or any(labels.get(other) for other in ("nvlink", "nvswitch", "cpu")):
        return Unmapped.NO_GPU
    node = node_of(labels)
    if node is None:
        return Unmapped.NO_NODE
    instance = labels.get("GPU_I_ID") or None
    uuid = labels.get("UUID") or labels.get("uuid") or labels.get("gpu_uuid") or None
    usable = (
        _INDEX.fullmatch(index) is not None
        and int(index) <= INT32_MAX
        and NODE_TEXT.fullmatch(node) is not None
        and _short(node, 252)
        and (instance is None or _short(instance, INSTANCE_BYTES_MAX))
        and (uuid is None or _short(uuid, UUID_BYTES_MAX))
    )
    if not usable:
        return Unmapped.BAD_LABEL
    return GpuSeries(Gpu(node, int(index), instance, uuid), _COLUMN_OF[column], scale)


def node_of(labels: Mapping[str, str]) -> str | None:
    """The node: the first of these labels that says something, the scrape target's host last.

    In Kubernetes ``Hostname`` is the exporter's pod unless its chart passes the node's name on: there a relabelling
    sets ``node``, which goes first.
    """
    for label in ("nantucket_node", "node", "k8s_node_name", "Hostname", "hostname", "host_name"):
        if value := labels.get(label):
            return value
    return labels.get("instance", "").rpartition(":")[0] or labels.get("instance") or None


def _job_series(name: str, labels: Mapping[str, str], job: str, step: str) -> JobSeries | Unmapped:
    attempt = labels.get("nantucket_attempt") or labels.get("attempt") or ATTEMPT_DEFAULT
    rank = labels.get("nantucket_rank") or labels.get("rank") or "0"
    layer = labels.get("nantucket_layer") or labels.get("layer") or None
    usable = (
        NAME.fullmatch(job) is not None
        and NAME.fullmatch(attempt) is not None
        and _INDEX.fullmatch(rank) is not None
        and int(rank) <= INT32_MAX
        and _STEP.fullmatch(step) is not None
        and abs(int(step)) <= INT64_MAX
        and METRIC_NAME.fullmatch(name) is not None
        and (layer is None or _short(layer, 512))
    )
    return JobSeries(job, attempt, int(rank), int(step), name, layer) if usable else Unmapped.BAD_LABEL


def _short(text: str, bytes_max: int) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) <= bytes_max
