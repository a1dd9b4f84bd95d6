"""GPM, the driver's own profiling of Hopper and later, beside ``driver`` the door to NVML.

A sample is taken of a GPU, or of one MIG instance of it; two samples give the metrics between them.
"""

import struct
from collections.abc import Sequence
from typing import Any

import pynvml

from collectors.nvml.driver import Device, DriverFault, fault_of, function, known_fault

GpmSample = Any
"""A sample's handle, of ``nvmlGpmSampleAlloc``."""

_HEAD = struct.Struct("=II16x")
"""The beginning of nvmlGpmMetricsGet_t: version, how many metrics, (the two samples)."""
_ASKED = struct.Struct("=Ii32x")
_FOUND = struct.Struct("=4xid24x")
"""nvmlGpmMetric_t: (number), code, value, (three names)."""


def gpm_supported(device: Device) -> bool:
    """Whether the GPU has GPM. Raises DriverFault."""
    support = pynvml.c_nvmlGpmSupport_t()
    support.version = pynvml.NVML_GPM_SUPPORT_VERSION
    _check(function("nvmlGpmQueryDeviceSupport")(device.handle, pynvml.byref(support)))
    return bool(support.isSupportedDevice)


def gpm_alloc() -> GpmSample:
    """Memory for a sample. Raises DriverFault."""
    sample = pynvml.c_nvmlGpmSample_t()
    _check(function("nvmlGpmSampleAlloc")(pynvml.byref(sample)))
    return sample


def gpm_free(sample: GpmSample) -> None:
    """Give the memory back. Raises DriverFault."""
    _check(function("nvmlGpmSampleFree")(sample))


def gpm_take(device: Device, gpu_instance: int | None, sample: GpmSample) -> None:
    """Fill ``sample`` from the GPU, or from one GPU instance of it. Raises DriverFault."""
    if gpu_instance is None:
        _check(function("nvmlGpmSampleGet")(device.handle, sample))
    else:
        _check(function("nvmlGpmMigSampleGet")(device.handle, gpu_instance, sample))


class GpmRequest:
    """Some metrics between two samples. The structure, of 19 KiB, is made once, and may serve many GPUs in turn."""

    def __init__(self, metric_ids: Sequence[int]) -> None:
        self.metric_ids = tuple(metric_ids)
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._metrics = memoryview(self._request).cast("B")[_HEAD.size :][: _ASKED.size * len(self.metric_ids)]
        self._empty = b"".join(_ASKED.pack(number, pynvml.NVML_ERROR_UNKNOWN) for number in self.metric_ids)
        head = _HEAD.pack(pynvml.NVML_GPM_METRICS_GET_VERSION, len(self.metric_ids))
        memoryview(self._request).cast("B")[: _HEAD.size] = head

    def read(self, old: GpmSample, new: GpmSample) -> list[float | DriverFault]:
        """A value or a fault for each metric. Raises DriverFault if the call fails."""
        self._metrics[:] = self._empty
        self._request.sample1, self._request.sample2 = old, new
        _check(function("nvmlGpmMetricsGet")(pynvml.byref(self._request)))
        return [known_fault(code) if code else value for code, value in _FOUND.iter_unpack(self._metrics)]


def _check(code: int) -> None:
    if code:
        raise fault_of(code)
