"""The PCIe link of a GPU. Its traffic comes from GPM or from counters: the call for it blocks for 20 ms."""

from functools import partial

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.signals import Rate, Signal, count, one

BYTES_PER_SECOND_MAX = 128e9
"""PCIe 6 with 16 lanes: 64 GT/s a lane, 8 bits a byte, 16 lanes."""
_traffic = partial(Rate, cost=CostClass.SECOND, unit_bytes=1, bytes_per_second_max=BYTES_PER_SECOND_MAX)
_count = partial(count, cost=CostClass.SLOW)

SIGNALS: tuple[Signal, ...] = (
    _traffic("pcie_tx_bytes_per_second", (197, 0)),
    _traffic("pcie_rx_bytes_per_second", (198, 0)),
    one("pcie_link_generation", Device.pcie_link_generation, CostClass.SLOW, "nvmlDeviceGetCurrPcieLinkGeneration"),
    one("pcie_link_width", Device.pcie_link_width, CostClass.SLOW, "nvmlDeviceGetCurrPcieLinkWidth"),
    one(
        "pcie_link_generation_max",
        Device.pcie_link_generation_max,
        CostClass.RARE,
        "nvmlDeviceGetMaxPcieLinkGeneration",
    ),
    one("pcie_link_width_max", Device.pcie_link_width_max, CostClass.RARE, "nvmlDeviceGetMaxPcieLinkWidth"),
    _count("pcie_replay_count", 94),
    _count("pcie_replay_rollover_count", 95),
    _count("pcie_recovery_count", 169),
    _count("pcie_correctable_error_count", 173),
    _count("pcie_nak_received_count", 174),
    _count("pcie_receiver_error_count", 175),
    _count("pcie_bad_tlp_count", 176),
    _count("pcie_nak_sent_count", 177),
    _count("pcie_bad_dllp_count", 178),
    _count("pcie_non_fatal_error_count", 179),
    _count("pcie_fatal_error_count", 180),
    _count("pcie_unsupported_request_count", 181),
    _count("pcie_lcrc_error_count", 182),
    _count("pcie_lane_error_count", 183),
)
