"""The MIG instances of a GPU: which there are, and what is read from each."""

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device, DriverFault, Instance
from collectors.nvml.gpm import Gpm
from collectors.nvml.part import Part
from collectors.nvml.plan import PartPlan
from collectors.nvml.refusals import Refusals
from collectors.nvml.sample import Sample

_MODE = "mode"


class Instances:
    """The instances of ``device``. They are listed every 10 s, and at once when one of them does not answer."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._parts: dict[str, tuple[Instance, Part]] = {}
        self._refusals: Refusals[str] = Refusals()
        self.enabled = False
        """Whether the GPU was in MIG mode when that was last asked."""

    def look(self, due: frozenset[CostClass], now: float) -> None:
        """List them, if that is due. Raises DriverFault; what was known before stands."""
        if CostClass.SLOW in due:
            self._list(now)

    def read(self, plan: PartPlan, now: float, *, profile: bool, processes: bool = False) -> list[Sample]:
        """One sample for each. One that is gone has none. Raises DriverFault where they cannot be listed."""
        made = [self._sample(instance, part, plan, now, profile) for instance, part in self._parts.values()]
        for sample, (_, part) in zip(made, self._parts.values(), strict=True):
            if processes:
                part.processes(sample, now)
        if all(sample.values or not sample.failures for sample in made):
            return made
        self._list(now)
        return [sample for sample in made if sample.uuid in self._parts]

    def close(self) -> None:
        """Give back what GPM holds."""
        for _, part in self._parts.values():
            part.gpm.pause()
        self._parts = {}

    def _list(self, now: float) -> None:
        found = {instance.uuid: instance for instance in self._found(now)}
        for uuid in self._parts.keys() - found.keys():
            self._parts.pop(uuid)[1].gpm.pause()
        for uuid, instance in found.items():
            if uuid not in self._parts:
                self._parts[uuid] = instance, Part(instance.device, Gpm(self._device, instance.gpu_instance))

    def _found(self, now: float) -> list[Instance]:
        if self._refusals.get(_MODE, now) is not None:
            return []
        try:
            self.enabled = self._device.mig_enabled()
            self._refusals.given((_MODE,))
        except DriverFault as fault:
            if not fault.lasting:
                raise
            self._refusals.note(_MODE, fault, now)
            self.enabled = False
        return self._device.instances() if self.enabled else []

    @staticmethod
    def _sample(instance: Instance, part: Part, plan: PartPlan, now: float, profile: bool) -> Sample:
        made = Sample(instance.text, instance.uuid)
        part.call(made, plan.calls, now)
        if profile:
            part.profile(made, plan, now)
        else:
            part.gpm.pause()
        return made
