"""What a GPU draws."""

from collectors.nvml.driver import FIELD_ENERGY, Device
from collectors.nvml.signals import Field, Signal, one

SIGNALS: tuple[Signal, ...] = (
    one("power_watts", Device.power_watts),
    one("power_limit_watts", Device.power_limit_watts),
    Field("energy_joules", FIELD_ENERGY, divisor=1e3),
)
