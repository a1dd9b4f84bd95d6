"""How busy a GPU is and what its memory holds."""

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.signals import Call, Signal, one

MEMORY = Call(
    ("memory_used_mib", "memory_total_mib", "memory_free_mib"),
    Device.memory_mib,
    CostClass.SECOND,
    "nvmlDeviceGetMemoryInfo_v2, else nvmlDeviceGetMemoryInfo",
)
SIGNALS: tuple[Signal, ...] = (
    Call(
        ("gpu_utilization_percent", "memory_copy_utilization_percent"),
        Device.utilization_percent,
        CostClass.SECOND,
        "nvmlDeviceGetUtilizationRates",
    ),
    MEMORY,
    one("encoder_utilization_percent", Device.encoder_percent, CostClass.SLOW, "nvmlDeviceGetEncoderUtilization"),
    one("decoder_utilization_percent", Device.decoder_percent, CostClass.SLOW, "nvmlDeviceGetDecoderUtilization"),
    one("memory_reserved_mib", Device.memory_reserved_mib, CostClass.RARE, "nvmlDeviceGetMemoryInfo_v2"),
)
