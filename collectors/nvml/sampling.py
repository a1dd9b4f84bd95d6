"""Everything that is read from one GPU: all groups, each field failing alone, then each of its MIG instances."""

from collections.abc import Mapping

from collectors.cost_class import CostClass
from collectors.errors import FieldFailure
from collectors.nvml.driver import INT64_MAX, Device, DriverFault
from collectors.nvml.driver_fields import FieldAnswer, FieldKey
from collectors.nvml.field_reader import FieldReader
from collectors.nvml.gpm import Gpm
from collectors.nvml.instances import Instances
from collectors.nvml.link_reader import LinkReader
from collectors.nvml.part import Part
from collectors.nvml.plan import COSTS, NAMES, Plan, link_sources, plan_of, sources
from collectors.nvml.rates import CounterRate
from collectors.nvml.sample import LinkSample, Number, Sample
from collectors.nvml.signals import Field

__all__ = [
    "COSTS",
    "NAMES",
    "GpuReader",
    "LinkSample",
    "Sample",
    "link_sources",
    "lost_sample",
    "sources",
]

EVERYTHING = frozenset(CostClass)
REPEAT_SECONDS_MAX = 1.5
"""Between two readings of a second a value is repeated. A reading that comes late by more than half a second leaves it
null rather than old."""
WHOLE_READING = "*"


class GpuReader:
    """Reads one GPU again and again, and remembers what that takes: counters, samples of GPM, what was refused.

    One that has lost its GPU is to be closed, and replaced by one with the new handle.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._instances = Instances(device)
        self._second: Mapping[str, Number] = {}
        self._second_at = 0.0
        self._begin()

    def read(
        self,
        now_monotonic: float,
        due: frozenset[CostClass],
        profile: bool = True,
        fast: frozenset[str] | None = None,
    ) -> list[Sample]:
        """The GPU itself first, then each MIG instance. Blocks; never raises for what the driver refuses.

        Read is what is ``due``, and ``fast``, the metrics that somebody wants more often than once a second. Where the
        class of a second is not due, the rest of it is what was read less than a second ago. Without ``profile`` GPM
        is left alone, and what only it gives is null.
        """
        plan = plan_of(due, fast)
        made = Sample()
        self._look_for_instances(made, due, now_monotonic)
        self._read_gpu(made, plan, now_monotonic, profile)
        self._repeat(made, plan, due, now_monotonic)
        if made.lost:
            made.failures.update((name, FieldFailure.GPU_LOST) for name in plan.metrics if name not in made.values)
            return [made]
        slow = CostClass.SLOW in due
        if slow and self._instances.enabled:
            made.pids = []  # what runs on a divided GPU runs in an instance, and is listed there
        elif slow:
            self._part.processes(made, now_monotonic)
        try:
            return [made, *self._instances.read(plan.instance, now_monotonic, profile=profile, processes=slow)]
        except DriverFault as fault:
            made.failures[WHOLE_READING] = fault.reason
            return [made]

    def close(self) -> None:
        """Give back what GPM holds."""
        self._part.gpm.pause()
        self._instances.close()

    def _begin(self) -> None:
        self._part = Part(self._device, Gpm(self._device))
        self._fields = FieldReader(self._device)
        self._links = LinkReader(self._fields)
        self._rates: dict[FieldKey, CounterRate] = {}
        self._uncovered = False

    def _look_for_instances(self, made: Sample, due: frozenset[CostClass], now: float) -> None:
        before = self._instances.enabled
        try:
            self._instances.look(due, now)
        except DriverFault as fault:
            made.failures[WHOLE_READING] = fault.reason
        if self._instances.enabled != before:
            # What such a card refuses, it may give in the other mode.
            self._part.gpm.pause()
            self._begin()

    def _read_gpu(self, made: Sample, plan: Plan, now: float, profile: bool) -> None:
        counted = bool(plan.rates) and (not profile or self._part.gpm.refused(now) or self._uncovered)
        found = self._fields.read(plan.with_rates if counted else plan.without_rates, now)
        for signal in plan.fields:
            _take(made, signal, found)
        if profile:
            self._part.profile(made, plan.whole, now)
        else:
            self._part.gpm.pause()
        if plan.rates:
            self._take_rates(made, plan, found, now, profile)
        if plan.over_links:
            self._links.read(made, plan.over_links, found, now)
        self._part.call(made, plan.whole.calls, now)

    def _take_rates(
        self, made: Sample, plan: Plan, found: Mapping[FieldKey, FieldAnswer], now: float, profile: bool
    ) -> None:
        self._uncovered = any(rate.metric in made.failures for rate in plan.rates)
        for signal in plan.rates:
            if signal.metric in made.values or (answer := found.get(signal.key)) is None:
                continue
            if isinstance(answer, DriverFault):
                if profile:
                    made.refuse(signal.metric, answer.reason)
                continue
            rate = self._rates.setdefault(signal.key, CounterRate(signal.bytes_per_second_max / signal.unit_bytes))
            if (counts := rate.observe(int(answer), now)) is not None:
                made.give(signal.metric, counts * signal.unit_bytes)
            else:
                made.failures.pop(signal.metric, None)

    def _repeat(self, made: Sample, plan: Plan, due: frozenset[CostClass], now: float) -> None:
        if CostClass.SECOND in due:
            self._second, self._second_at = made.values, now
        elif now - self._second_at <= REPEAT_SECONDS_MAX:
            made.values.update((name, self._second[name]) for name in plan.repeated if name in self._second)


def _take(made: Sample, signal: Field, found: Mapping[FieldKey, FieldAnswer]) -> None:
    total: float | int = 0
    for key in signal.keys:
        answer = found[key]
        if isinstance(answer, DriverFault):
            made.refuse(signal.metric, answer.reason)
            return
        total = answer if len(signal.keys) == 1 else total + answer
    if signal.whole and not (isinstance(total, int) and total <= INT64_MAX):
        made.refuse(signal.metric, FieldFailure.DRIVER_ERROR)
    elif signal.decode is not None:
        made.give(signal.metric, signal.decode(total))
    else:
        made.give(signal.metric, total if signal.divisor is None else total / signal.divisor)


def lost_sample() -> Sample:
    """What there is to say of a GPU that cannot even be found."""
    return Sample(failures=dict.fromkeys(NAMES, FieldFailure.GPU_LOST))
