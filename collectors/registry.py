"""The sources of GPU rows, by name: a visible table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from collectors.errors import UnknownSource
from collectors.nvml.source import NvmlGpus
from collectors.simulated import GPUS_PER_NODE, NODES_PER_JOB, Fault, SimulatedFleet
from collectors.source import Source
from telemetry_bus.runtime.clock import Clock

JOBS_MIN = 4
"""A small simulated fleet runs this many jobs too: on one job alone every GPU would idle or work at the same time."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a configuration says about sources. Each source takes what concerns it.

    ``node`` is this machine's name; ``environment`` is added to that of the process that talks to the driver;
    ``simulated_gpus``, ``seed`` and ``faults`` shape a simulated fleet.
    """

    node: str
    environment: Mapping[str, str] = field(default_factory=dict)
    simulated_gpus: int = 8
    seed: int = 0
    faults: tuple[Fault, ...] = ()


def _nvml(options: SourceOptions, clock: Clock) -> Source:
    return NvmlGpus(options.node, environment=options.environment).build(clock)


def _simulated(options: SourceOptions, clock: Clock) -> Source:
    del clock  # its time is what it is read at
    nodes = math.ceil(options.simulated_gpus / GPUS_PER_NODE)
    nodes_per_job = min(NODES_PER_JOB, max(1, nodes // JOBS_MIN))
    fleet = SimulatedFleet(
        options.simulated_gpus, seed=options.seed, nodes_per_job=nodes_per_job, faults=options.faults
    )
    return fleet.build()


SOURCES: dict[str, Callable[[SourceOptions, Clock], Source]] = {
    "nvml": _nvml,
    "simulated": _simulated,
}


def build_source(name: str, options: SourceOptions, clock: Clock) -> Source:
    """The source ``name``, not yet open. Raises :class:`~collectors.errors.UnknownSource`."""
    if name not in SOURCES:
        raise UnknownSource(name, sorted(SOURCES))
    return SOURCES[name](options, clock)
