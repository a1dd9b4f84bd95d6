"""How busy a GPU is and what its memory holds."""

from collectors.nvml.driver import Device
from collectors.nvml.signals import Call, Signal

SIGNALS: tuple[Signal, ...] = (
    Call(("gpu_utilization_percent", "memory_copy_utilization_percent"), Device.utilization_percent),
    Call(("memory_used_mib", "memory_total_mib"), Device.memory_mib),
)
