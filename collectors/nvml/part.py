"""What is read of a GPU and of a MIG instance alike: single calls, and GPM."""

from collections.abc import Iterable

from collectors.errors import FieldFailure
from collectors.nvml.driver import Device, DriverFault
from collectors.nvml.gpm import Gpm
from collectors.nvml.plan import PartPlan
from collectors.nvml.refusals import Refusals
from collectors.nvml.sample import Sample
from collectors.nvml.signals import Call

_PROCESSES = "processes"


class Part:
    """Reads calls from ``device`` and GPM through ``gpm``."""

    def __init__(self, device: Device, gpm: Gpm) -> None:
        self.device, self.gpm = device, gpm
        self._refusals: Refusals[str] = Refusals()

    def processes(self, made: Sample, now: float) -> None:
        """List the processes that use it."""
        if made.lost or self._refusals.get(_PROCESSES, now) is not None:
            return
        try:
            made.pids = self.device.process_ids()
        except DriverFault as fault:
            self._refusals.note(_PROCESSES, fault, now)

    def call(self, made: Sample, calls: Iterable[Call], now: float) -> None:
        """Make ``calls``, each failing alone. None is made any more once the GPU is lost."""
        lost = made.lost
        for call in calls:
            fault = self._refusals.get(call.metrics[0], now)
            if lost or fault is not None:
                self._refuse(made, call, FieldFailure.GPU_LOST if lost else FieldFailure.UNSUPPORTED)
                continue
            try:
                values = call.read(self.device)
            except DriverFault as error:
                self._refusals.note(call.metrics[0], error, now)
                self._refuse(made, call, error.reason)
                lost = error.reason is FieldFailure.GPU_LOST
                continue
            self._refusals.given((call.metrics[0],))
            for metric, value in zip(call.metrics, values, strict=True):
                if value is None:
                    made.refuse(metric, FieldFailure.UNSUPPORTED)
                else:
                    made.values[metric] = value

    def profile(self, made: Sample, plan: PartPlan, now: float) -> None:
        """Read GPM, unless the GPU is lost."""
        if not plan.profiled or made.lost:
            return
        try:
            answers = self.gpm.read(plan.request, now)
        except DriverFault as fault:
            for signal in plan.profiled:
                made.refuse(signal.metric, fault.reason)
            return
        if answers is None:
            return
        for signal, answer in zip(plan.profiled, answers, strict=True):
            if isinstance(answer, DriverFault):
                made.refuse(signal.metric, answer.reason)
            else:
                made.give(signal.metric, answer * signal.factor)

    @staticmethod
    def _refuse(made: Sample, call: Call, reason: FieldFailure) -> None:
        for metric in call.metrics:
            made.refuse(metric, reason)
