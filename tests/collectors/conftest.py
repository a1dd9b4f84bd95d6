"""What the collectors' tests share: the fake driver, and time that moves only when it is told to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bench.fake_driver.library import FakeDriver, compile_fake
from tests.collectors.nvml_scene import Scene, opened


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled fake `libnvidia-ml.so.1`."""
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_driver(fake_library: Path, tmp_path: Path) -> FakeDriver:
    """Return a driver with two healthy GPUs."""
    return FakeDriver(fake_library, tmp_path / "nvml")


@pytest.fixture
def nvml_scene(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Return GPU 0 of the fake driver with its reader, in this process."""
    with opened(fake_driver, monkeypatch) as scene:
        yield scene
