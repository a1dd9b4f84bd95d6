"""How hot a GPU is, and how hot it may become.

Up to Ampere the limits are temperatures. From Ada on they are margins: what :func:`Device.temperature_margin_celsius`
says when the limit is reached, mostly below zero.
"""

from functools import partial

from collectors.cost_class import CostClass
from collectors.nvml import driver
from collectors.nvml.driver import Device
from collectors.nvml.signals import Call, Signal, gauge, one


def _threshold(metric: str, which: int) -> Call:
    read = partial(Device.temperature_threshold_celsius, threshold=which)
    return one(metric, read, CostClass.RARE, f"nvmlDeviceGetTemperatureThreshold({which})")


SIGNALS: tuple[Signal, ...] = (
    one(
        "temperature_celsius",
        Device.temperature_celsius,
        CostClass.SECOND,
        "nvmlDeviceGetTemperatureV, else nvmlDeviceGetTemperature",
    ),
    gauge("memory_temperature_celsius", 82, CostClass.SECOND),
    one(
        "temperature_margin_celsius",
        Device.temperature_margin_celsius,
        CostClass.SLOW,
        "nvmlDeviceGetMarginTemperature",
    ),
    _threshold("temperature_shutdown_celsius", driver.THRESHOLD_SHUTDOWN),
    _threshold("temperature_slowdown_celsius", driver.THRESHOLD_SLOWDOWN),
    _threshold("memory_temperature_max_celsius", driver.THRESHOLD_MEMORY_MAX),
    _threshold("temperature_max_celsius", driver.THRESHOLD_GPU_MAX),
    gauge("temperature_shutdown_margin_celsius", 193, CostClass.RARE),
    gauge("temperature_slowdown_margin_celsius", 194, CostClass.RARE),
    gauge("memory_temperature_max_margin_celsius", 195, CostClass.RARE),
    gauge("temperature_max_margin_celsius", 196, CostClass.RARE),
)
