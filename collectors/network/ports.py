"""Find the ports and read them. All of it blocks: a card may take milliseconds for a counter, a dead one for ever."""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collectors.errors import FieldFailure
from collectors.network.counters import ETHERNET, INFINIBAND, CounterFile

PORTS_MAX = 64
"""A node has 8 to 16 fast ports and a few slow ones; more are left out, and said."""
NUMBER_BYTES_MAX = 64
INT64_MAX = 2**63 - 1
IFF_UP = 0x1
"""``flags`` of an interface: somebody wants it to be up."""
FLAPS = "down_count"
"""The counter that tells of a link that went down and came back between two looks."""
ARPHRD_ETHER = "1"
"""``type`` of an interface; 32 is InfiniBand's, whose port is read as such."""
_RATE = re.compile(r"^\s*(\d{1,5}(?:\.\d{1,3})?) Gb/sec")


@dataclass(frozen=True, slots=True)
class Port:
    """A port. ``folder`` holds its files; ``table`` which metric is which; ``netdevs`` are interfaces of the same card,
    whose link is this port's."""

    kind: str
    device: str
    port: int | None
    folder: Path
    table: Mapping[str, CounterFile]
    netdevs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As people call it: ``mlx5_0/1`` or ``eth0``."""
        return self.device if self.port is None else f"{self.device}/{self.port}"


@dataclass(frozen=True, slots=True)
class PortReading:
    """What one look at a port has given. ``up`` and ``rate`` (Gbit/s) are ``None`` where it does not say.

    ``wanted`` is False for a port that somebody has switched off: that it is down is no fault. ``values`` has the
    counters, in the unit of their metrics; where they were not asked for, that of :data:`FLAPS` alone.
    """

    port: Port
    up: bool | None
    wanted: bool
    rate: float | None
    values: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, FieldFailure] = field(default_factory=dict)


def find_ports(sysfs: Path, interfaces: Sequence[str] | None) -> list[Port]:
    """The ports of this machine, at most :data:`PORTS_MAX`. ``interfaces`` names cards and interfaces, ``None``: all
    that are hardware."""
    found = [*_infiniband(sysfs / "class" / "infiniband"), *_ethernet(sysfs / "class" / "net")]
    chosen = [port for port in found if interfaces is None or port.device in interfaces]
    return chosen[:PORTS_MAX]


def _infiniband(folder: Path) -> list[Port]:
    ports = []
    for card in _names(folder):
        netdevs = tuple(_names(folder / card / "device" / "net"))
        for number in _names(folder / card / "ports"):
            if number.isdecimal() and len(number) < 6:
                place = folder / card / "ports" / number
                ports.append(Port("infiniband", card, int(number), place, _present(place, INFINIBAND), netdevs))
    return ports


def _ethernet(folder: Path) -> list[Port]:
    ports = []
    for name in _names(folder):
        place = folder / name
        # A bridge, a tunnel and a pair of a container have no device behind them.
        if (place / "device").exists() and _text(place / "type") == ARPHRD_ETHER:
            ports.append(Port("ethernet", name, None, place, _present(place, ETHERNET)))
    return ports


def _present(place: Path, table: Mapping[str, CounterFile]) -> Mapping[str, CounterFile]:
    """The files of ``table`` that this port has."""
    folders = {str(Path(file.path).parent) for file in table.values()}
    there = {str(Path(folder) / name) for folder in folders for name in _names(place / folder)}
    return {metric: file for metric, file in table.items() if file.path in there}


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names alone, at a third of the cost
    except OSError:
        return []


def read_port(port: Port, *, with_counters: bool) -> PortReading | None:
    """Read a port; ``None`` where it is gone."""
    if not port.folder.exists():
        return None
    up, wanted, rate = _infiniband_state(port) if port.kind == "infiniband" else _ethernet_state(port)
    values: dict[str, int] = {}
    failures: dict[str, FieldFailure] = {}
    for metric, file in port.table.items():
        if not with_counters and metric != FLAPS:
            continue
        number = _number(port.folder / file.path)
        if isinstance(number, FieldFailure):
            failures[metric] = number
        else:
            values[metric] = min(number * file.factor, INT64_MAX)
    return PortReading(port, up, wanted, rate, values, failures)


def _infiniband_state(port: Port) -> tuple[bool | None, bool, float | None]:
    state, physical = (_text(port.folder / name) for name in ("state", "phys_state"))
    rate = _RATE.match(_text(port.folder / "rate") or "")
    up = None if state is None else state.endswith("ACTIVE")
    return up, not (physical or "").endswith("Disabled"), float(rate[1]) if rate and up else None


def _ethernet_state(port: Port) -> tuple[bool | None, bool, float | None]:
    flags = _text(port.folder / "flags") or ""
    try:
        wanted = bool(int(flags, 16) & IFF_UP)
    except ValueError:
        wanted = True
    carrier = _text(port.folder / "carrier")  # cannot be read while the interface is switched off
    speed = _text(port.folder / "speed") or ""
    up = carrier == "1" if carrier is not None else None if wanted else False
    megabits = int(speed) if speed.isdecimal() and len(speed) < 10 else 0
    return up, wanted, megabits / 1000 if megabits and up else None


def _text(path: Path) -> str | None:
    try:
        return _content(path).decode("ascii", "replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | FieldFailure:
    """The number in a file, or why there is none: ``N/A (no PMA)`` stands there, the card has none, or worse."""
    try:
        text = _content(path).strip()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            return FieldFailure.NOT_PERMITTED
        absent = error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV)
        return FieldFailure.UNSUPPORTED if absent else FieldFailure.DRIVER_ERROR
    if text.isdigit() and len(text) <= 20:
        return min(int(text), INT64_MAX)
    return FieldFailure.UNSUPPORTED if text.startswith(b"N/A") else FieldFailure.DRIVER_ERROR


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, NUMBER_BYTES_MAX)
    finally:
        os.close(descriptor)
