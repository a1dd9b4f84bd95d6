"""What a GPU draws."""

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.signals import Signal, gauge, one

SIGNALS: tuple[Signal, ...] = (
    one("power_watts", Device.power_watts, CostClass.SECOND, "nvmlDeviceGetPowerUsage"),
    gauge("power_instant_watts", 186, CostClass.SECOND, divisor=1e3),
    gauge("energy_joules", 83, CostClass.SECOND, divisor=1e3),
    one("power_limit_watts", Device.power_limit_watts, CostClass.SLOW, "nvmlDeviceGetEnforcedPowerLimit"),
)
