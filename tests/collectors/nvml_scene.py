"""The reader of one GPU in the test's own process: the real pynvml on the fake driver, and time that the test moves."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.bench.fake_driver.library import FakeDriver
from collectors.cost_class import CostClass
from collectors.errors import FieldFailure
from collectors.nvml.driver import Device, Driver
from collectors.nvml.sampling import GpuReader, Sample

EVERYTHING = frozenset(CostClass)
SECOND = frozenset({CostClass.SECOND})


class Scene:
    """GPU 0 of ``driver``, and its reader."""

    def __init__(self, driver: FakeDriver, library: ctypes.CDLL) -> None:
        self.driver = driver
        self._library = library
        self.device: Device = Driver().device(0)
        self.reader = GpuReader(self.device)
        self.now = 1_000.0

    def read_all(
        self,
        due: frozenset[CostClass] = EVERYTHING,
        *,
        after: float = 1.0,
        profile: bool = True,
        fast: frozenset[str] | None = None,
    ) -> list[Sample]:
        """The GPU and its instances, ``after`` seconds."""
        self.now += after
        return self.reader.read(self.now, due, profile, fast)

    def read(
        self,
        due: frozenset[CostClass] = EVERYTHING,
        *,
        after: float = 1.0,
        profile: bool = True,
        fast: frozenset[str] | None = None,
    ) -> Sample:
        """The GPU itself, ``after`` seconds."""
        return self.read_all(due, after=after, profile=profile, fast=fast)[0]

    def say(self, key: str, value: str, gpu: int | str = 0) -> None:
        """What the driver says from now on."""
        self.driver.say(key, value, gpu)

    @property
    def living_samples(self) -> int:
        """Samples of GPM that were not given back."""
        return int(self._library.fake_gpm_samples())


@contextmanager
def opened(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene on ``driver``. The library is found by its name, for it is loaded already."""
    library = ctypes.CDLL(str(Path(driver.library) / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setenv("FAKE_NVML_ANSWERS", str(driver.file))
    nvml = Driver()
    nvml.open()
    scene = Scene(driver, library)
    try:
        yield scene
    finally:
        scene.reader.close()
        nvml.close()


def reasons(sample: Sample, *metrics: str) -> set[FieldFailure | None]:
    """Why these have no value; a value beside a reason is an error of ours."""
    assert not sample.values.keys() & sample.failures.keys()
    return {sample.failures.get(metric) for metric in metrics}
