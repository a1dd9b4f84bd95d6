"""Which file of sysfs is which metric: a visible table for each kind of port."""

from collections.abc import Mapping
from dataclasses import dataclass

WORD_BYTES = 4
"""InfiniBand counts data in words of four bytes."""


@dataclass(frozen=True, slots=True)
class CounterFile:
    """A file below a port's folder, and by what its number is multiplied to be the metric."""

    path: str
    factor: int = 1


INFINIBAND: Mapping[str, CounterFile] = {
    "tx_bytes": CounterFile("counters/port_xmit_data", WORD_BYTES),
    "rx_bytes": CounterFile("counters/port_rcv_data", WORD_BYTES),
    "recovery_count": CounterFile("counters/link_error_recovery"),
    "symbol_error_count": CounterFile("counters/symbol_error"),
    "receive_error_count": CounterFile("counters/port_rcv_errors"),
    "link_integrity_error_count": CounterFile("counters/local_link_integrity_errors"),
    "transmit_discard_count": CounterFile("counters/port_xmit_discards"),
    "down_count": CounterFile("counters/link_downed"),
    "tx_packets": CounterFile("counters/port_xmit_packets"),
    "rx_packets": CounterFile("counters/port_rcv_packets"),
    "transmit_wait_count": CounterFile("counters/port_xmit_wait"),
    "buffer_overrun_count": CounterFile("counters/excessive_buffer_overrun_errors"),
    "remote_physical_error_count": CounterFile("counters/port_rcv_remote_physical_errors"),
    "out_of_sequence_count": CounterFile("hw_counters/out_of_sequence"),
    "sequence_error_count": CounterFile("hw_counters/packet_seq_err"),
    "ack_timeout_count": CounterFile("hw_counters/local_ack_timeout_err"),
    "not_ready_count": CounterFile("hw_counters/rnr_nak_retry_err"),
    "congestion_sent_count": CounterFile("hw_counters/np_cnp_sent"),
    "congestion_received_count": CounterFile("hw_counters/rp_cnp_handled"),
    "congestion_marked_count": CounterFile("hw_counters/np_ecn_marked_roce_packets"),
    "adaptive_retransmit_count": CounterFile("hw_counters/roce_adp_retrans"),
}
"""A port below ``/sys/class/infiniband/CARD/ports/N``; RoCE cards have these folders too."""

ETHERNET: Mapping[str, CounterFile] = {
    "tx_bytes": CounterFile("statistics/tx_bytes"),
    "rx_bytes": CounterFile("statistics/rx_bytes"),
    "crc_error_count": CounterFile("statistics/rx_crc_errors"),
    "receive_error_count": CounterFile("statistics/rx_errors"),
    "transmit_discard_count": CounterFile("statistics/tx_dropped"),
    "down_count": CounterFile("carrier_down_count"),
    "tx_packets": CounterFile("statistics/tx_packets"),
    "rx_packets": CounterFile("statistics/rx_packets"),
    "receive_discard_count": CounterFile("statistics/rx_dropped"),
    "buffer_overrun_count": CounterFile("statistics/rx_over_errors"),
}
"""An interface below ``/sys/class/net``."""


def sources() -> dict[str, dict[str, str]]:
    """By kind, which file each metric comes from, for the documentation."""
    state = {"infiniband": {"up": "state, phys_state", "rate_gigabits_per_second": "rate"}}
    state["ethernet"] = {"up": "carrier", "rate_gigabits_per_second": "speed"}
    tables = {"infiniband": INFINIBAND, "ethernet": ETHERNET}
    return {kind: state[kind] | {name: file.path for name, file in table.items()} for kind, table in tables.items()}
