"""The sources of a node, by name: a visible table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from collectors.dcgm_exporter import DcgmExporter
from collectors.errors import UnknownSource
from collectors.gpu_users import GpuUsers, UsersOfGpus
from collectors.kernel_log import KMSG, KernelLog
from collectors.network import Network
from collectors.nvml.source import NvmlGpus
from collectors.profiling import ProfilingSwitch
from collectors.simulation_faults import Fault
from collectors.source import Source
from collectors.xids import XidLedger
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

JOBS_MIN = 4
"""A small simulated fleet runs this many jobs too: on one job alone every GPU would idle or work at the same time."""


@dataclass(frozen=True)
class SourceOptions:
    """What a configuration says about sources, and what they share. Each source takes what concerns it.

    ``node`` is this machine's name; ``environment`` is added to that of the process that talks to the driver;
    ``simulated_gpus``, ``seed`` and ``faults`` shape a simulated fleet. ``kernel_log_state`` keeps how far the kernel's
    log was read. ``sysfs`` and ``proc`` are the host's; ``interfaces`` names network cards, empty: all. ``exporters``
    are URLs of dcgm-exporters, ``exporter_rename`` gives all their rows to ``node``.
    """

    node: str
    environment: Mapping[str, str] = field(default_factory=dict)
    simulated_gpus: int = 8
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    fast: tuple[str, ...] = ()
    profile: bool = True
    kernel_log: Path = KMSG
    kernel_log_state: Path | None = None
    sysfs: Path = Path("/sys")
    interfaces: tuple[str, ...] = ()
    proc: Path = Path("/proc")
    pod_resources: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    exporters: tuple[Secret[str], ...] = ()
    exporter_seconds: float = 10.0
    exporter_rename: bool = False

    @cached_property
    def xids(self) -> XidLedger:
        """What has told of XIDs: the kernel's log and the driver both do."""
        return XidLedger(self.node)

    @cached_property
    def users(self) -> GpuUsers:
        """Who uses the GPUs: the driver, the jobs, their environments and the kubelet each know a part."""
        return GpuUsers(self.node)

    @cached_property
    def profiling(self) -> ProfilingSwitch:
        """Whether profiling is paused for somebody."""
        return ProfilingSwitch()


def _nvml(options: SourceOptions, clock: Clock) -> Source:
    return NvmlGpus(
        options.node,
        environment=options.environment,
        fast=options.fast,
        profile=options.profile,
        profiling=options.profiling,
        xids=options.xids,
        users=options.users,
    ).build(clock)


def _simulated(options: SourceOptions, clock: Clock) -> Source:
    from collectors.simulated import GPUS_PER_NODE, NODES_PER_JOB, SimulatedFleet  # noqa: PLC0415 - 4 MiB that no node needs

    del clock  # its time is what it is read at
    nodes = math.ceil(options.simulated_gpus / GPUS_PER_NODE)
    nodes_per_job = min(NODES_PER_JOB, max(1, nodes // JOBS_MIN))
    fleet = SimulatedFleet(
        options.simulated_gpus, seed=options.seed, nodes_per_job=nodes_per_job, faults=options.faults
    )
    return fleet.build()


def _dcgm_exporter(options: SourceOptions, clock: Clock) -> Source:
    return DcgmExporter(
        options.exporters,
        options.node,
        rename=options.exporter_rename,
        period_seconds=options.exporter_seconds,
        users=options.users,
    ).build(clock)


def _kernel_log(options: SourceOptions, clock: Clock) -> Source:
    return KernelLog(options.node, options.xids, options.kernel_log, options.kernel_log_state).build(clock)


def _network(options: SourceOptions, clock: Clock) -> Source:
    return Network(options.node, options.sysfs, options.interfaces or None).build(clock)


def _gpu_users(options: SourceOptions, clock: Clock) -> Source:
    return UsersOfGpus(options.node, options.users, options.proc, options.pod_resources).build(clock)


SOURCES: dict[str, Callable[[SourceOptions, Clock], Source]] = {
    "nvml": _nvml,
    "dcgm_exporter": _dcgm_exporter,
    "simulated": _simulated,
    "kernel_log": _kernel_log,
    "network": _network,
    "gpu_users": _gpu_users,
}
BESIDE_GPUS = ("kernel_log", "network", "gpu_users")
"""What a node with GPUs reads beside them. They come after the driver: they ask by its list of GPUs and processes."""


def build_source(name: str, options: SourceOptions, clock: Clock) -> Source:
    """The source ``name``, not yet open. Raises :class:`~collectors.errors.UnknownSource`."""
    if name not in SOURCES:
        raise UnknownSource(name, sorted(SOURCES))
    return SOURCES[name](options, clock)
