"""How fast a GPU runs, what holds it down, and for how long that has been so since the driver was loaded."""

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.signals import Signal, one, seconds

SIGNALS: tuple[Signal, ...] = (
    one("sm_clock_mhz", Device.sm_clock_mhz, CostClass.SECOND, "nvmlDeviceGetClockInfo(SM)"),
    one(
        "clocks_event_reasons",
        Device.clocks_event_reasons,
        CostClass.SECOND,
        "nvmlDeviceGetCurrentClocksEventReasons, else nvmlDeviceGetCurrentClocksThrottleReasons",
    ),
    one("memory_clock_mhz", Device.memory_clock_mhz, CostClass.SLOW, "nvmlDeviceGetClockInfo(MEM)"),
    one("performance_state", Device.performance_state, CostClass.SLOW, "nvmlDeviceGetPerformanceState"),
    seconds("power_cap_seconds", 74, CostClass.SLOW),
    seconds("thermal_policy_seconds", 75, CostClass.SLOW),
    seconds("sync_boost_seconds", 76, CostClass.SLOW),
    seconds("board_limit_seconds", 77, CostClass.SLOW),
    seconds("low_utilization_seconds", 78, CostClass.SLOW),
    seconds("reliability_limit_seconds", 79, CostClass.SLOW),
    seconds("below_application_clocks_seconds", 80, CostClass.SLOW),
    seconds("below_base_clocks_seconds", 81, CostClass.SLOW),
    seconds("software_thermal_slowdown_seconds", 269, CostClass.SLOW),
    seconds("hardware_thermal_slowdown_seconds", 270, CostClass.SLOW),
    seconds("power_brake_seconds", 271, CostClass.SLOW),
)
