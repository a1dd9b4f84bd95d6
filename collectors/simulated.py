"""A simulated fleet: any number of GPUs whose signals are fitted to recordings of real H100 nodes.

Every row and every event says ``simulated``, nodes are called ``sim-0001`` and GPUs ``SIM-0001-0``. What the recordings
do not have (memory temperature, clocks, P-state, PCIe link, row remaps, ...) is null. The same seed and the same times
give the same numbers.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from collectors.errors import InvalidSimulation, SourceClosed
from collectors.simulation_faults import FAULTS_MAX, NODE_WIDE, Fault, FaultKind, FaultState
from collectors.simulation_model import FleetState, parameters
from collectors.source import METRICS, Column, EventRow, GpuRows, SourceReading
from telemetry_bus.schemas import EventKind

__all__ = ["Fault", "FaultKind", "SimulatedFleet", "SimulatedSource"]

Array = np.ndarray[Any, np.dtype[Any]]

GPUS_MAX = 1_000_000
"""Three times Leviathan; the state of a GPU is some 200 bytes, so 200 MiB."""
GPUS_PER_NODE = 8
NODES_PER_JOB = 16
GPUS_PER_NODE_MAX = 64
"""A frame of 256 such nodes is some 5 MiB; a reader takes 16 MiB."""
JOB_SECONDS = 3_600.0
"""How long a simulated job runs before another begins: not fitted, the recordings last five minutes."""
IDLE_SECONDS = 60.0
"""How long its nodes are empty in between: not fitted either."""
TRAINING = ("t13_node0", "t13_node1", "t2", "t3", "t6")
"""The recordings that are training runs."""

_WHOLE = frozenset(
    {"gpu_utilization_percent", "memory_copy_utilization_percent", "memory_used_mib", "temperature_celsius"}
)
"""What the device gives as whole numbers."""


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """A fleet of ``gpus`` GPUs, ``gpus_per_node`` to a node (the last node may have fewer).

    ``nodes_per_job`` neighbouring nodes run one job: they warm up, work and rest together. ``workloads`` are names of
    fitted recordings; each job draws one. Raises :class:`~collectors.errors.InvalidSimulation`.
    """

    gpus: int
    seed: int = 0
    gpus_per_node: int = GPUS_PER_NODE
    nodes_per_job: int = NODES_PER_JOB
    workloads: tuple[str, ...] = TRAINING
    job_seconds: float = JOB_SECONDS
    idle_seconds: float = IDLE_SECONDS
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a fleet that cannot be."""
        if not 0 < self.gpus <= GPUS_MAX:
            raise InvalidSimulation("gpus", self.gpus, f"1 to {GPUS_MAX}")
        if not 0 < self.gpus_per_node <= GPUS_PER_NODE_MAX or self.nodes_per_job < 1:
            raise InvalidSimulation(
                "gpus_per_node, nodes_per_job",
                (self.gpus_per_node, self.nodes_per_job),
                f"1 to {GPUS_PER_NODE_MAX}, 1 or more",
            )
        known = sorted(parameters().workloads)
        if not self.workloads or not set(self.workloads) <= set(known):
            raise InvalidSimulation("workloads", self.workloads, f"some of {', '.join(known)}")
        if self.seed < 0 or not self.job_seconds > 0 or not self.idle_seconds >= 0:
            found = self.seed, self.job_seconds, self.idle_seconds
            raise InvalidSimulation("seed, job_seconds, idle_seconds", found, "a seed >= 0, seconds > 0 and >= 0")
        if len(self.faults) > FAULTS_MAX:
            raise InvalidSimulation("faults", f"{len(self.faults)} faults", f"at most {FAULTS_MAX}")
        for fault in self.faults:
            self.place_of(fault)

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return -(-self.gpus // self.gpus_per_node)

    def node_name(self, index: int) -> str:
        """The name of node ``index`` (from 0): ``sim-0001`` is the first."""
        return f"sim-{index + 1:04d}"

    def place_of(self, fault: Fault) -> tuple[int, int, int]:
        """Node index, first GPU, and one past the last GPU of ``fault``."""
        number = fault.node.removeprefix("sim-")
        index = int(number) - 1 if number.isdecimal() else -1
        if not 0 <= index < self.nodes or self.node_name(index) != fault.node:
            raise InvalidSimulation(
                "faults", fault, f"a node from {self.node_name(0)} to {self.node_name(self.nodes - 1)}"
            )
        here = min(self.gpus_per_node, self.gpus - index * self.gpus_per_node)
        if fault.gpu is None:
            return index, 0, self.gpus_per_node if fault.kind in NODE_WIDE else here
        if not 0 <= fault.gpu < here:
            raise InvalidSimulation("faults", fault, f"a GPU from 0 to {here - 1} on {fault.node}")
        return index, fault.gpu, fault.gpu + 1

    def build(self) -> "SimulatedSource":
        """The running fleet."""
        return SimulatedSource(self)


class SimulatedSource:
    """A running :class:`SimulatedFleet`. Its time begins with the first read."""

    name = "simulated"
    period_seconds: float | None = None
    urgent: asyncio.Event | None = None

    def __init__(self, fleet: SimulatedFleet) -> None:
        self.fleet = fleet
        self._open = False
        self._first: float | None = None
        self._last = 0.0
        shape = fleet.nodes, fleet.gpus_per_node
        rng = np.random.Generator(np.random.PCG64(fleet.seed))
        self._schedule = _Schedule(fleet, rng)
        self._state = FleetState(parameters(), self._schedule.regimes, shape, rng)
        self._faults = FaultState(fleet.faults, [fleet.place_of(fault) for fault in fleet.faults], shape)
        self._exists = np.arange(shape[0] * shape[1]) < fleet.gpus
        names = [fleet.node_name(index) for index in range(fleet.nodes)]
        self._names = np.array(names)
        self._gpu = np.tile(np.arange(fleet.gpus_per_node, dtype=np.int32), fleet.nodes)
        prefixes = np.char.add(np.char.replace(self._names, "sim-", "SIM-"), "-")
        self._uuid = np.char.add(np.repeat(prefixes, shape[1]), self._gpu.astype(str))
        self._uuid_arrow = pa.array(self._uuid, pa.string())
        self._counts_ecc = any(fault.kind is FaultKind.ECC_UNCORRECTED for fault in fleet.faults)

    async def __aenter__(self) -> Self:
        """Open it: nothing to wait for."""
        self._open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        self._open = False

    async def read(self, now: float) -> SourceReading:
        """The whole fleet at ``now``, worked out in a thread: 300,000 GPUs would hold up the loop."""
        if not self._open:
            raise SourceClosed(self.name)
        return await asyncio.to_thread(self.reading, now)

    def unreadable(self) -> Sequence[str]:
        """Nothing: there is nothing to be read."""
        return ()

    def reading(self, now: float) -> SourceReading:
        """The same without a loop, for generators of load."""
        inventory = self._first is None
        metrics, keep, changed = self._tick(now)
        silent = {self.fleet.node_name(index) for index in self._faults.silent_nodes()}
        events = self._inventory() if inventory else []
        events += self._faults.events(changed, self._uuid_of)
        told = [event for event in events if event.node not in silent]
        return SourceReading(self._rows(metrics, keep), told)

    def columns(self, now: float) -> dict[str, Array]:
        """All rows at ``now`` as numpy arrays of one length: identity and every metric that is not null throughout."""
        metrics, keep, _ = self._tick(now)
        rows = int(keep.sum())
        identity = {
            "time": np.full(rows, now),
            "node": np.repeat(self._names, self.fleet.gpus_per_node)[keep],
            "gpu": self._gpu[keep],
            "uuid": self._uuid[keep],
            "simulated": np.ones(rows, dtype=bool),
        }
        return identity | {name: values.ravel()[keep] for name, values in metrics.items()}

    def _tick(self, now: float) -> tuple[dict[str, Array], Array, list[tuple[Fault, bool]]]:
        """Metrics of shape (nodes, GPUs a node), which of them are rows (flat), and faults that began or ended."""
        if self._first is None:
            self._first = self._last = now
        # A clock that steps back moves nothing: no energy is taken away again.
        seconds = max(now - self._last, 0.0)
        self._last = max(now, self._last)
        elapsed = self._last - self._first
        changed = self._faults.tick(elapsed)
        signals, reasons = self._state.signals(self._schedule.at(elapsed), seconds)
        self._faults.slow_down(signals, reasons)
        temperature = self._state.heat(signals["power_watts"], seconds)
        self._faults.heat_up(temperature)
        metrics = signals | {
            "temperature_celsius": temperature,
            "memory_total_mib": np.full(temperature.shape, parameters().memory_total_mib, dtype=np.float32),
            "energy_joules": self._state.energy_joules,
            "clocks_event_reasons": reasons,
        }
        if self._counts_ecc:
            metrics["ecc_uncorrected_volatile_count"] = self._faults.ecc_uncorrected
        for name in _WHOLE:
            metrics[name] = np.rint(metrics[name])
        ordered = {name: metrics[name] for name in METRICS if name in metrics}
        return ordered, self._exists & self._faults.present.ravel(), changed

    def _rows(self, metrics: Mapping[str, Array], keep: Array) -> GpuRows | None:
        counts = keep.reshape(self.fleet.nodes, -1).sum(axis=1)
        nodes = [(name, count) for name, count in zip(self._names.tolist(), counts.tolist(), strict=True) if count > 0]
        if not nodes:
            return None
        valid = np.ones(int(keep.sum()), dtype=bool)
        columns = {name: Column(values.ravel()[keep], valid) for name, values in metrics.items()}
        return GpuRows(nodes, self._gpu[keep], self._uuid_arrow.filter(pa.array(keep)), True, columns)

    def _inventory(self) -> list[EventRow]:
        return [self._inventory_of(index) for index in range(self.fleet.nodes)]

    def _inventory_of(self, index: int) -> EventRow:
        node = self.fleet.node_name(index)
        count = min(self.fleet.gpus_per_node, self.fleet.gpus - index * self.fleet.gpus_per_node)
        gpus = [{"gpu": gpu, "uuid": self._uuid_of(index, gpu), "name": parameters().gpu_name} for gpu in range(count)]
        detail = {"hostname": node, "driver_version": None, "gpus": gpus, "simulated": True}
        message = f"{node}: {count} simulated {parameters().gpu_name}"
        return EventRow(EventKind.NODE_INVENTORY, node, message, True, detail=detail)

    def _uuid_of(self, node: int, gpu: int) -> str:
        return str(self._uuid[node * self.fleet.gpus_per_node + gpu])


class _Schedule:
    """Which regime each node is in: a job's nodes are idle, warm up and work together, each job at its own time."""

    def __init__(self, fleet: SimulatedFleet, rng: np.random.Generator) -> None:
        fitted = parameters()
        self.regimes = [fitted.idle, *(regime for name in fleet.workloads for regime in fitted.workloads[name][1:])]
        job_of_node = np.arange(fleet.nodes) // fleet.nodes_per_job
        jobs = int(job_of_node[-1]) + 1
        workload = rng.integers(0, len(fleet.workloads), jobs)
        warmup = np.array([fitted.workloads[name][0] for name in fleet.workloads])[workload]
        self._idle_seconds = fleet.idle_seconds
        cycle = fleet.idle_seconds + warmup + fleet.job_seconds
        self._offset = (rng.uniform(0.0, 1.0, jobs) * cycle)[job_of_node]
        self._workload, self._warmup, self._cycle = workload[job_of_node], warmup[job_of_node], cycle[job_of_node]

    def at(self, elapsed: float) -> Array:
        """The index into ``regimes`` of every node, ``elapsed`` seconds after the first tick."""
        at = (elapsed + self._offset) % self._cycle
        warming = at < self._idle_seconds + self._warmup
        return np.where(at < self._idle_seconds, 0, np.where(warming, 1, 2) + 2 * self._workload)
