"""Errors of a GPU's memory, what was put out of use because of them, and what the driver asks for."""

from functools import partial

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.signals import Call, Signal, count, gauge, one

_slow = partial(count, cost=CostClass.SLOW)
_rare = partial(count, cost=CostClass.RARE)

SIGNALS: tuple[Signal, ...] = (
    gauge("recovery_action", 230, CostClass.SLOW),
    _slow("ecc_corrected_volatile_count", 3),
    _slow("ecc_uncorrected_volatile_count", 4),
    _slow("ecc_corrected_aggregate_count", 5),
    _slow("ecc_uncorrected_aggregate_count", 6),
    Call(
        (
            "sram_ecc_corrected_volatile_count",
            "sram_ecc_uncorrected_volatile_count",
            "sram_ecc_corrected_aggregate_count",
            "sram_ecc_uncorrected_aggregate_count",
            "sram_ecc_threshold_exceeded",
        ),
        Device.sram_ecc,
        CostClass.SLOW,
        "nvmlDeviceGetSramEccErrorStatus",
    ),
    _slow("row_remap_corrected_count", 142),
    _slow("row_remap_uncorrected_count", 143),
    gauge("row_remap_pending", 144, CostClass.SLOW),
    gauge("row_remap_failed", 145, CostClass.SLOW),
    _slow("retired_page_corrected_count", 29),
    _slow("retired_page_uncorrected_count", 30),
    gauge("retired_page_pending", 31, CostClass.SLOW),
    _rare("row_remap_corrected_inactive_count", 301),
    _rare("row_remap_uncorrected_inactive_count", 302),
    Call(
        (
            "row_remap_spares_max_banks",
            "row_remap_spares_high_banks",
            "row_remap_spares_partial_banks",
            "row_remap_spares_low_banks",
            "row_remap_spares_none_banks",
        ),
        Device.row_remap_spares,
        CostClass.RARE,
        "nvmlDeviceGetRowRemapperHistogram",
    ),
    one("memory_unrepairable", Device.memory_unrepairable, CostClass.RARE, "nvmlDeviceGetUnrepairableMemoryFlag_v1"),
)
