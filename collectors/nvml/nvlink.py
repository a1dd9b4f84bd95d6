"""NVLink: its traffic, its errors, the fabric behind it, and C2C, the like link between GPU and CPU in one module.

Up to NVLink 4 errors are counted as checksum errors, replays and recoveries; Hopper counts them link by link. NVLink 5
has counters of its own, for one link or for all.
"""

from functools import partial

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.driver_fields import ALL_LINKS
from collectors.nvml.signals import Call, Field, OfLink, OverLinks, Rate, Signal, count, gauge

NVLINKS, C2C_LINKS = 91, 170
"""The fields that count the links."""
BYTES_PER_SECOND_MAX = 1.8e12
"""NVLink 6: 3.6 TB/s for a GPU, half of it in each direction. NVLink 4 has 450 GB/s."""
BYTES_PER_KIB = 1_024
BYTES_PER_MB = 1_000_000

_traffic = partial(Rate, cost=CostClass.SECOND, bytes_per_second_max=BYTES_PER_SECOND_MAX)
_total = partial(count, cost=CostClass.RARE)
_all_links = partial(count, cost=CostClass.RARE, scope=ALL_LINKS)
_sum = partial(OverLinks, links=NVLINKS, whole=True)
_c2c = partial(OverLinks, links=C2C_LINKS)


def bit_error_ratio(word: float | int) -> float:
    """NVLink 5's errors per bit: four bits of mantissa (11:8) and eight of a negative exponent of ten (7:0)."""
    bits = int(word)
    return float((bits >> 8) & 0xF) * 10.0 ** -(bits & 0xFF)


def _ratio(metric: str, field_id: int) -> Field:
    return Field(metric, ((field_id, ALL_LINKS),), CostClass.RARE, decode=bit_error_ratio)


SIGNALS: tuple[Signal, ...] = (
    _traffic("nvlink_tx_bytes_per_second", (202, ALL_LINKS), unit_bytes=1),
    _traffic("nvlink_rx_bytes_per_second", (204, ALL_LINKS), unit_bytes=1),
    _traffic("nvlink_tx_bytes_per_second", (138, ALL_LINKS), unit_bytes=BYTES_PER_KIB),
    _traffic("nvlink_rx_bytes_per_second", (139, ALL_LINKS), unit_bytes=BYTES_PER_KIB),
    Call(
        ("fabric_state", "fabric_status", "fabric_health", "fabric_health_mask"),
        Device.fabric,
        CostClass.SLOW,
        "nvmlDeviceGetGpuFabricInfoV",
    ),
    gauge("nvlink_links", NVLINKS, CostClass.RARE),
    OverLinks("nvlink_active_links", NVLINKS, 165, states=True),
    _total("nvlink_crc_error_count", 38, 45),
    _sum("nvlink_crc_error_count", field_id=163),
    _total("nvlink_replay_count", 52),
    _sum("nvlink_replay_count", field_id=161),
    _total("nvlink_recovery_count", 59),
    _all_links("nvlink_recovery_count", 215),
    _sum("nvlink_recovery_count", field_id=162),
    _all_links("nvlink_malformed_packet_count", 206),
    _all_links("nvlink_buffer_overrun_count", 207),
    _all_links("nvlink_receive_error_count", 208),
    _all_links("nvlink_receive_remote_error_count", 209),
    _all_links("nvlink_receive_general_error_count", 210),
    _all_links("nvlink_link_integrity_error_count", 211),
    _all_links("nvlink_transmit_discard_count", 212),
    _all_links("nvlink_recovery_succeeded_count", 213),
    _all_links("nvlink_recovery_failed_count", 214),
    _all_links("nvlink_effective_error_count", 219),
    _ratio("nvlink_effective_bit_error_ratio", 220),
    _all_links("nvlink_symbol_error_count", 221),
    _ratio("nvlink_symbol_bit_error_ratio", 222),
    _all_links("nvlink_fec_few_count", *range(236, 239)),
    _all_links("nvlink_fec_some_count", *range(239, 243)),
    _all_links("nvlink_fec_many_count", *range(243, 251)),
    gauge("c2c_links", C2C_LINKS, CostClass.RARE),
    _c2c("c2c_active_links", field_id=171, states=True),
    _c2c("c2c_max_bytes_per_second", field_id=172, factor=BYTES_PER_MB),
    _c2c("c2c_interrupt_error_count", field_id=231, whole=True),
    _c2c("c2c_replay_count", field_id=232, whole=True),
    _c2c("c2c_replay_back_to_back_count", field_id=233, whole=True),
)
LINK_SIGNALS: tuple[OfLink, ...] = (
    OfLink("up", 165, state=True),
    OfLink("rate_gigabits_per_second", 164, factor=8 * BYTES_PER_MB / 1e9),
    OfLink("tx_bytes", 202),
    OfLink("tx_bytes", 138, factor=BYTES_PER_KIB),
    OfLink("rx_bytes", 204),
    OfLink("rx_bytes", 139, factor=BYTES_PER_KIB),
    OfLink("crc_error_count", 163),
    OfLink("replay_count", 161),
    OfLink("recovery_count", 162),
    OfLink("recovery_count", 215),
    OfLink("symbol_error_count", 221),
    OfLink("receive_error_count", 208),
    OfLink("link_integrity_error_count", 211),
    OfLink("transmit_discard_count", 212),
)
"""What each NVLink's own row has. Of two sources of one metric the first that has it wins."""
LINK_WHOLE = frozenset({signal.metric for signal in LINK_SIGNALS} - {"up", "rate_gigabits_per_second"})
"""Columns of whole numbers."""
