"""What GPM measures on Hopper and later: how busy each part of the chip is, and what goes over its links.

Ratios are means between two readings. Those that are read every 10 s tell of the second before.
"""

from functools import partial

from collectors.cost_class import CostClass
from collectors.nvml.signals import Profiled, Signal

BYTES_PER_MIB = 1 << 20

_ratio = partial(Profiled, cost=CostClass.SECOND)
_slow_ratio = partial(Profiled, cost=CostClass.SLOW)
_rate = partial(Profiled, cost=CostClass.SECOND, factor=BYTES_PER_MIB)

_OF_CHIP: tuple[Profiled, ...] = (
    _ratio("graphics_active_ratio", 1),
    _ratio("sm_active_ratio", 2),
    _ratio("sm_occupancy_ratio", 3),
    _ratio("integer_active_ratio", 4),
    _ratio("tensor_active_ratio", 5),
    _slow_ratio("tensor_dfma_active_ratio", 6),
    _slow_ratio("tensor_hmma_active_ratio", 7),
    _slow_ratio("tensor_dmma_active_ratio", 8),
    _slow_ratio("tensor_imma_active_ratio", 9),
    _ratio("dram_active_ratio", 10),
    _ratio("fp64_active_ratio", 11),
    _ratio("fp32_active_ratio", 12),
    _ratio("fp16_active_ratio", 13),
)
RATIOS = tuple(signal.metric for signal in _OF_CHIP)
"""What a MIG instance has for itself."""
SIGNALS: tuple[Signal, ...] = (
    *_OF_CHIP,
    _rate("pcie_tx_bytes_per_second", 20),
    _rate("pcie_rx_bytes_per_second", 21),
    _rate("nvlink_rx_bytes_per_second", 60),
    _rate("nvlink_tx_bytes_per_second", 61),
)
