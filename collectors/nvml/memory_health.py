"""Errors of a GPU's memory, and the rows that were remapped because of them."""

from collectors.nvml import driver
from collectors.nvml.signals import Field, Signal

SIGNALS: tuple[Signal, ...] = (
    Field("ecc_corrected_volatile_count", driver.FIELD_ECC_CORRECTED_VOLATILE),
    Field("ecc_uncorrected_volatile_count", driver.FIELD_ECC_UNCORRECTED_VOLATILE),
    Field("row_remap_uncorrected_count", driver.FIELD_ROW_REMAP_UNCORRECTED),
    Field("row_remap_pending", driver.FIELD_ROW_REMAP_PENDING),
    Field("row_remap_failed", driver.FIELD_ROW_REMAP_FAILED),
)
