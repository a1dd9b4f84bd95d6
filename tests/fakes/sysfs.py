"""A tree of sysfs as the kernel makes it: cards of InfiniBand, RoCE and Ethernet, with the files' own formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

COUNTERS = (
    "port_xmit_data", "port_rcv_data", "port_xmit_packets", "port_rcv_packets", "symbol_error", "link_error_recovery",
    "link_downed", "port_rcv_errors", "port_rcv_remote_physical_errors", "port_xmit_discards", "port_xmit_wait",
    "local_link_integrity_errors", "excessive_buffer_overrun_errors", "VL15_dropped", "unicast_xmit_packets",
)  # fmt: skip
HW_COUNTERS = (
    "out_of_sequence", "packet_seq_err", "local_ack_timeout_err", "rnr_nak_retry_err", "np_cnp_sent", "rp_cnp_handled",
    "np_ecn_marked_roce_packets", "roce_adp_retrans", "lifespan",
)  # fmt: skip
STATISTICS = (
    "tx_bytes", "rx_bytes", "tx_packets", "rx_packets", "rx_errors", "tx_dropped", "rx_dropped", "rx_crc_errors",
    "rx_over_errors", "collisions", "multicast",
)  # fmt: skip
ACTIVE, DOWN = ("4: ACTIVE", "5: LinkUp"), ("1: DOWN", "2: Polling")
DISABLED = ("1: DOWN", "3: Disabled")


@dataclass
class Sysfs:
    """The tree below ``root``. What it says is changed by writing files, as the kernel's own would change."""

    root: Path

    def infiniband(
        self, card: str, port: int = 1, *, rate: str = "400 Gb/sec (4X NDR)", netdev: str | None = None
    ) -> Path:
        """A port that is up; its folder. With ``netdev`` it is a RoCE port, whose card has that interface too."""
        device = self.root / "devices" / f"pci0000:{card}"
        folder = device / "infiniband" / card / "ports" / str(port)
        for name in ("counters", "hw_counters"):
            (folder / name).mkdir(parents=True)
        for name in COUNTERS:
            self.say(folder / "counters" / name, "0")
        for name in HW_COUNTERS:
            self.say(folder / "hw_counters" / name, "0")
        self.say(folder / "rate", rate)
        self.say(folder / "link_layer", "InfiniBand" if netdev is None else "Ethernet")
        self.link(folder, ACTIVE)
        self._into_class("infiniband", card, device / "infiniband" / card, device)
        if netdev is not None:
            self.ethernet(netdev, device=device)
        return folder

    def ethernet(self, name: str, *, speed: str = "100000", device: Path | None = None, kind: str = "1") -> Path:
        """An interface that is up; its folder."""
        device = self.root / "devices" / f"pci0000:{name}" if device is None else device
        folder = device / "net" / name
        (folder / "statistics").mkdir(parents=True)
        for counter in STATISTICS:
            self.say(folder / "statistics" / counter, "0")
        said = {"type": kind, "flags": "0x1003", "carrier": "1", "operstate": "up", "speed": speed, "mtu": "9000"}
        for file, text in {**said, "carrier_changes": "1", "carrier_down_count": "0", "carrier_up_count": "1"}.items():
            self.say(folder / file, text)
        self._into_class("net", name, folder, device)
        return folder

    def virtual(self, name: str) -> Path:
        """An interface without hardware: a bridge, or one end of a container's pair."""
        folder = self.root / "devices" / "virtual" / "net" / name
        folder.mkdir(parents=True)
        self.say(folder / "type", "1")
        self._into_class("net", name, folder, None)
        return folder

    def say(self, file: Path, text: str) -> None:
        """Let a file say ``text``, on a line, as sysfs does."""
        file.write_text(f"{text}\n")

    def link(self, folder: Path, state: tuple[str, str]) -> None:
        """The state of an InfiniBand port."""
        self.say(folder / "state", state[0])
        self.say(folder / "phys_state", state[1])

    def remove(self, kind: str, name: str) -> None:
        """A card is gone."""
        (self.root / "class" / kind / name).unlink()

    def _into_class(self, kind: str, name: str, target: Path, device: Path | None) -> None:
        folder = self.root / "class" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
        if device is not None and not (target / "device").exists():
            (target / "device").symlink_to(device)
