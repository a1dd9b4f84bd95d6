"""What one reading of a GPU takes in, made once for each set of cost classes that may be due together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from collectors.cost_class import CostClass
from collectors.nvml import activity, clocks, memory_health, nvlink, pcie, power, profiling, thermal
from collectors.nvml.driver_gpm import GpmRequest
from collectors.nvml.field_reader import FieldSet
from collectors.nvml.signals import Call, Field, OverLinks, Profiled, Rate, Signal

GROUPS = (profiling, activity, thermal, power, clocks, pcie, memory_health, nvlink)
"""Profiling is first: where it gives a rate, that one is taken."""
SIGNALS: tuple[Signal, ...] = tuple(signal for group in GROUPS for signal in group.SIGNALS)


def metrics_of(signal: Signal) -> tuple[str, ...]:
    """The metrics that a signal gives."""
    return signal.metrics if isinstance(signal, Call) else (signal.metric,)


COSTS: dict[str, CostClass] = {name: signal.cost for signal in SIGNALS for name in metrics_of(signal)}
NAMES: tuple[str, ...] = tuple(COSTS)
"""Every metric that NVML is asked for. The others of ``gpu/1`` are null."""
OF_INSTANCES = (*activity.MEMORY.metrics, *profiling.RATIOS)
"""What the driver gives for a MIG instance. Everything else, its links too, belongs to the whole GPU."""


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What is read of a GPU and of a MIG instance alike."""

    calls: tuple[Call, ...]
    profiled: tuple[Profiled, ...]
    request: GpmRequest


@dataclass(frozen=True, slots=True)
class Plan:
    """The signals of one reading, by kind. ``with_rates`` is for a GPU whose rates GPM does not give."""

    metrics: tuple[str, ...]
    repeated: tuple[str, ...]
    whole: PartPlan
    instance: PartPlan
    fields: tuple[Field, ...]
    rates: tuple[Rate, ...]
    over_links: tuple[OverLinks, ...]
    without_rates: FieldSet
    with_rates: FieldSet


@lru_cache(maxsize=64)
def plan_of(due: frozenset[CostClass], fast: frozenset[str] | None) -> Plan:
    """The signals whose class is due or one of whose metrics is among ``fast``."""
    chosen = fast or frozenset()
    wanted = [signal for signal in SIGNALS if signal.cost in due or not chosen.isdisjoint(metrics_of(signal))]
    metrics = tuple(dict.fromkeys(name for signal in wanted for name in metrics_of(signal)))
    fields = tuple(signal for signal in wanted if isinstance(signal, Field))
    rates = tuple(signal for signal in wanted if isinstance(signal, Rate))
    keys = [key for signal in fields for key in signal.keys]
    return Plan(
        metrics=metrics,
        repeated=tuple(name for name in NAMES if COSTS[name] is CostClass.SECOND and name not in metrics),
        whole=_part_plan(wanted),
        instance=_part_plan([signal for signal in wanted if metrics_of(signal)[0] in OF_INSTANCES]),
        fields=fields,
        rates=rates,
        over_links=tuple(signal for signal in wanted if isinstance(signal, OverLinks)),
        without_rates=FieldSet(keys),
        with_rates=FieldSet([*keys, *(rate.key for rate in rates)]),
    )


def _part_plan(signals: Sequence[Signal]) -> PartPlan:
    profiled = tuple(signal for signal in signals if isinstance(signal, Profiled))
    request = GpmRequest([signal.metric_id for signal in profiled])
    return PartPlan(tuple(signal for signal in signals if isinstance(signal, Call)), profiled, request)


def sources() -> dict[str, str]:
    """Where each metric comes from, for the documentation: the first source that has it wins."""
    found: dict[str, list[str]] = {name: [] for name in NAMES}
    for signal in SIGNALS:
        for name in metrics_of(signal):
            found[name].append(signal.source)
    return {name: ", else ".join(texts) for name, texts in found.items()}


def link_sources() -> dict[str, str]:
    """As :func:`sources`, for the metrics of ``link/1`` that an NVLink has. They are read every 30 s."""
    found: dict[str, list[str]] = {}
    for signal in nvlink.LINK_SIGNALS:
        found.setdefault(signal.metric, []).append(signal.source)
    return {name: ", else ".join(texts) for name, texts in found.items()}
