"""The PCIe link of a GPU. Its traffic is not read here: the call for it blocks for 20 ms."""

from collectors.nvml.driver import FIELD_PCIE_REPLAY, Device
from collectors.nvml.signals import Field, Signal, one

SIGNALS: tuple[Signal, ...] = (
    one("pcie_link_generation", Device.pcie_link_generation),
    one("pcie_link_width", Device.pcie_link_width),
    Field("pcie_replay_count", FIELD_PCIE_REPLAY),
)
