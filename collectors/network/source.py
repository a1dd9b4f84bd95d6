"""The network as a source: rows of ``link/1`` every ten seconds, and events about links within two."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from collectors.cost_class import CostClass, Schedule
from collectors.errors import FieldFailure, SourceClosed
from collectors.network.faults import LinkWatch
from collectors.network.ports import PORTS_MAX, Port, PortReading, find_ports, read_port
from collectors.one_look import OneLook
from collectors.source import LINKS, Column, EventRow, LinkRows, SourceReading
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind

SYSFS = Path("/sys")
LOOK_SECONDS = 2.0
"""How often the state of the links is looked at: three files a port."""
DEADLINE_SECONDS = 1.0
"""A card answers in microseconds; one whose firmware hangs keeps whoever reads it for as long as it likes."""
ALL = "network"
"""The field of a failure that took a whole look."""


@dataclass(frozen=True, slots=True)
class Network:
    """The network cards of ``node``, below ``sysfs``. ``interfaces`` names cards (``mlx5_0``) and interfaces
    (``eth0``); ``None``: all that are hardware."""

    node: str
    sysfs: Path = SYSFS
    interfaces: tuple[str, ...] | None = None

    def build(self, clock: Clock) -> "NetworkSource":
        """The source, not yet open."""
        del clock  # its time is what it is read at
        return NetworkSource(self)


class NetworkSource:
    """A running :class:`Network`. Opening always succeeds: cards may come later."""

    name = "network"
    period_seconds: float | None = LOOK_SECONDS
    urgent: asyncio.Event | None = None

    def __init__(self, config: Network) -> None:
        self.config = config
        self._open = False
        self._schedule = Schedule()
        self._watch = LinkWatch(config.node)
        self._look: OneLook[list[PortReading]] = OneLook("network")
        self._ports: list[Port] = []
        self._readings: Sequence[PortReading] = ()
        self._silent = False

    async def __aenter__(self) -> Self:
        """Begin."""
        self._open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End. A look that hangs is left alone."""
        self._open = False

    async def read(self, now: float) -> SourceReading:
        """The state of all links, and their counters where they are due."""
        if not self._open:
            raise SourceClosed(self.name)
        is_due = CostClass.SLOW in self._schedule.due(now)
        try:
            readings = await self._look.take(lambda: self._read_all(counters=is_due), DEADLINE_SECONDS)
        except TimeoutError:
            self._schedule.hasten(CostClass.SLOW)
            return SourceReading(None, self._silence(), Counter({(ALL, FieldFailure.NO_ANSWER): 1}))
        events = [*self._answer(), *self._watch.observe(readings, now)]
        self._readings = readings
        if events and not is_due:
            self._schedule.hasten(CostClass.SLOW)  # what goes with it is sent now, not in ten seconds
        failures = Counter((metric, why) for each in readings for metric, why in each.failures.items())
        rows = self._rows(readings) if is_due and readings else None
        return SourceReading(None, events, failures, links=rows)

    def unreadable(self) -> Sequence[str]:
        """What is not there, and which links are down."""
        if self._silent:
            return ["the network cards do not answer: a counter in sysfs hangs; look at the kernel's log"]
        if not self._readings:
            folder = self.config.sysfs / "class"
            where = f"no network card is seen in {folder}/infiniband or {folder}/net"
            return [f"{where}; a container sees those of its own network alone: run it in the host's network"]
        down = [each.port.name for each in self._readings if each.up is False and each.wanted]
        said = [f"no link: {', '.join(down)}"] if down else []
        if len(self._readings) >= PORTS_MAX:
            said.append(f"only the first {PORTS_MAX} ports are read; name those that matter in collect.interfaces")
        return said

    def _read_all(self, *, counters: bool) -> list[PortReading]:
        """In the look's thread. Ports are found anew with each reading of counters, and when one is gone."""
        if counters or not self._ports:
            self._ports = find_ports(self.config.sysfs, self.config.interfaces)
        readings = [read_port(port, with_counters=counters) for port in self._ports]
        if None in readings:
            self._ports = []
        return [reading for reading in readings if reading is not None]

    def _silence(self) -> list[EventRow]:
        if self._silent:
            return []
        self._silent = True
        return [self._told("hung", "the network cards do not answer: a counter hangs")]

    def _answer(self) -> list[EventRow]:
        if not self._silent:
            return []
        self._silent = False
        return [self._told("answers", "the network cards answer again")]

    def _told(self, state: str, words: str) -> EventRow:
        detail = {"source": self.name, "state": state}
        return EventRow(EventKind.DRIVER, self.config.node, f"{self.config.node}: {words}", False, detail=detail)

    def _rows(self, readings: Sequence[PortReading]) -> LinkRows:
        values = [_metrics(each) for each in readings]
        given = [name for name in LINKS if any(name in each for each in values)]
        return LinkRows(
            nodes=[(self.config.node, len(readings))],
            kind=[each.port.kind for each in readings],
            device=[each.port.device for each in readings],
            port=[each.port.port for each in readings],
            gpu=[None] * len(readings),
            uuid=[None] * len(readings),
            simulated=False,
            metrics={name: Column.of(name, [each.get(name) for each in values]) for name in given},
        )


def _metrics(reading: PortReading) -> Mapping[str, float]:
    state = {} if reading.up is None else {"up": float(reading.up)}
    rate = {} if reading.rate is None else {"rate_gigabits_per_second": reading.rate}
    return {**reading.values, **state, **rate}
