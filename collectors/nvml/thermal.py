"""How hot a GPU is."""

from collectors.nvml.driver import FIELD_MEMORY_TEMPERATURE, Device
from collectors.nvml.signals import Field, Signal, one

SIGNALS: tuple[Signal, ...] = (
    one("temperature_celsius", Device.temperature_celsius),
    Field("memory_temperature_celsius", FIELD_MEMORY_TEMPERATURE),
)
