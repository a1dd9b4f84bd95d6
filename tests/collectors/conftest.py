"""What the collectors' tests share: the fake driver, and time that moves only when it is told to."""

from pathlib import Path

import pytest

from tests.fakes.nvml.library import FakeDriver, compile_fake


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled fake `libnvidia-ml.so.1`."""
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_driver(fake_library: Path, tmp_path: Path) -> FakeDriver:
    """Return a driver with two healthy GPUs."""
    return FakeDriver(fake_library, tmp_path / "nvml")
