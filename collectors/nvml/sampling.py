"""Everything that is read from one GPU: all groups, each field failing alone."""

from dataclasses import dataclass, field

from collectors.errors import FieldFailure
from collectors.nvml import activity, clocks, memory_health, pcie, power, thermal
from collectors.nvml.driver import Device, DriverFault
from collectors.nvml.signals import Call, Field

GROUPS = (activity, thermal, power, clocks, pcie, memory_health)
CALLS = tuple(signal for group in GROUPS for signal in group.SIGNALS if isinstance(signal, Call))
FIELDS = tuple(signal for group in GROUPS for signal in group.SIGNALS if isinstance(signal, Field))
NAMES = (*(name for call in CALLS for name in call.metrics), *(signal.metric for signal in FIELDS))
"""Every metric that NVML is asked for. The others of ``gpu/1`` are null."""


@dataclass(slots=True)
class Sample:
    """What one GPU gave: ``values`` by metric, and the reason for each metric that has none."""

    values: dict[str, float | int] = field(default_factory=dict)
    failures: dict[str, FieldFailure] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether the GPU does not answer any more."""
        return FieldFailure.GPU_LOST in self.failures.values()


def sample(device: Device) -> Sample:
    """Read ``device``. Blocks; never raises for what the driver refuses."""
    made = Sample()
    _read_fields(device, made)
    for call in CALLS:
        if made.lost:
            made.failures.update(dict.fromkeys(call.metrics, FieldFailure.GPU_LOST))
            continue
        try:
            made.values.update(zip(call.metrics, call.read(device), strict=True))
        except DriverFault as fault:
            made.failures.update(dict.fromkeys(call.metrics, fault.reason))
    return made


def lost_sample() -> Sample:
    """What there is to say of a GPU that cannot even be found."""
    return Sample(failures=dict.fromkeys(NAMES, FieldFailure.GPU_LOST))


def _read_fields(device: Device, made: Sample) -> None:
    try:
        found = device.fields([signal.field_id for signal in FIELDS])
    except DriverFault as fault:
        made.failures.update({signal.metric: fault.reason for signal in FIELDS})
        return
    for signal, value in zip(FIELDS, found, strict=True):
        if isinstance(value, DriverFault):
            made.failures[signal.metric] = value.reason
        else:
            made.values[signal.metric] = value if signal.divisor is None else value / signal.divisor
