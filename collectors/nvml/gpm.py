"""GPM of one GPU or MIG instance: two samples are kept, and a reading tells of the time between them.

Samples cost the application nothing and disturb no other user of GPM. Nsight Compute and CUPTI want the counters for
themselves: while profiling is paused nothing is sampled, and the samples are given back.
"""

from collectors.nvml.driver import Device, DriverFault, not_supported
from collectors.nvml.driver_gpm import GpmRequest, GpmSample, gpm_alloc, gpm_free, gpm_supported, gpm_take
from collectors.nvml.refusals import Refusals

_SUPPORT = "support"
PERIOD_SECONDS_MIN = 0.095
"""NVIDIA gives 100 ms as the least time between two samples; a reading of ten a second may come a little early."""


class Gpm:
    """The samples of ``device``, or of one GPU instance of it. Close it by :meth:`pause`."""

    def __init__(self, device: Device, gpu_instance: int | None = None) -> None:
        self._device, self._gpu_instance = device, gpu_instance
        self._samples: list[GpmSample] = []
        self._newest: int | None = None
        self._at = 0.0
        self._refusals: Refusals[str] = Refusals()
        self._supported = False

    def read(self, request: GpmRequest, now: float) -> list[float | DriverFault] | None:
        """The metrics of ``request`` since the reading before; ``None`` for the first. Raises DriverFault."""
        if self.refused(now):
            raise not_supported()
        try:
            return self._read(request, now)
        except DriverFault as fault:
            self._refusals.note(_SUPPORT, fault, now)
            raise

    def refused(self, now: float) -> bool:
        """Whether this card or driver does not have it, as far as is known."""
        return self._refusals.get(_SUPPORT, now) is not None

    def pause(self) -> None:
        """Give the samples back. The next reading begins anew."""
        samples, self._samples, self._newest = self._samples, [], None
        for sample in samples:
            try:
                gpm_free(sample)
            except DriverFault:
                # Of a GPU that is lost. The memory, a few KiB, goes with the process.
                continue

    def _read(self, request: GpmRequest, now: float) -> list[float | DriverFault] | None:
        if not self._supported:
            if not gpm_supported(self._device):
                raise not_supported()
            self._supported = True
            self._refusals.given((_SUPPORT,))
        while len(self._samples) < 2:
            self._samples.append(gpm_alloc())
        old = self._newest
        if old is not None and now - self._at < PERIOD_SECONDS_MIN:
            return None
        new = 0 if old is None else 1 - old
        self._newest = None  # what cannot be taken leaves nothing to compare with
        gpm_take(self._device, self._gpu_instance, self._samples[new])
        self._newest, self._at = new, now
        return None if old is None else request.read(self._samples[old], self._samples[new])
