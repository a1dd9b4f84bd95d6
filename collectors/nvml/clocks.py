"""How fast a GPU runs, and what holds it down."""

from collectors.nvml.driver import Device
from collectors.nvml.signals import Signal, one

SIGNALS: tuple[Signal, ...] = (
    one("sm_clock_mhz", Device.sm_clock_mhz),
    one("memory_clock_mhz", Device.memory_clock_mhz),
    one("performance_state", Device.performance_state),
    one("clocks_event_reasons", Device.clocks_event_reasons),
)
