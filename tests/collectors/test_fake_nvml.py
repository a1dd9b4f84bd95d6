"""The fake driver itself: several threads ask it, while a test changes what it says."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.bench.fake_driver.library import FakeDriver

CALLS = 2_000


def test_threads_that_ask_while_the_answers_change_get_the_old_or_the_new_ones(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child's thread that waits for events and the one that reads share the library."""
    library = ctypes.CDLL(str(Path(fake_driver.library) / "libnvidia-ml.so.1"))
    monkeypatch.setenv("FAKE_NVML_ANSWERS", str(fake_driver.file))
    device = ctypes.c_void_p()
    assert library.nvmlDeviceGetHandleByIndex_v2(1, ctypes.byref(device)) == 0

    def ask() -> set[tuple[int, int]]:
        power = ctypes.c_uint()
        return {
            (library.nvmlDeviceGetPowerUsage(device, ctypes.byref(power)), power.value)  # one call, then its answer
            for _ in range(CALLS)
        }

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        for number in range(50):
            fake_driver.say("power_usage", str(100_000 + number % 2), gpu=1)
        seen = set().union(*(one.result() for one in asked))
    assert seen <= {(0, 691_500), (0, 100_000), (0, 100_001)}


def test_what_the_answers_say_last_is_seen_by_the_next_call(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are kept in memory, and never for longer than the file is unchanged."""
    library = ctypes.CDLL(str(Path(fake_driver.library) / "libnvidia-ml.so.1"))
    monkeypatch.setenv("FAKE_NVML_ANSWERS", str(fake_driver.file))
    device, clock = ctypes.c_void_p(), ctypes.c_uint()
    library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    for megahertz in range(1_000, 1_100):
        fake_driver.say("clock_sm", str(megahertz), gpu=0)
        assert library.nvmlDeviceGetClockInfo(device, 1, ctypes.byref(clock)) == 0
        assert clock.value == megahertz


def test_without_answers_every_call_is_an_unknown_error(tmp_path: Path, fake_library: Path) -> None:
    """It never makes up a healthy GPU."""
    code = (
        "import ctypes; power = ctypes.c_uint(); lib = ctypes.CDLL('libnvidia-ml.so.1'); device = ctypes.c_void_p();"
        "lib.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device));"
        "raise SystemExit(lib.nvmlDeviceGetPowerUsage(device, ctypes.byref(power)) != 999)"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(fake_library), "FAKE_NVML_ANSWERS": str(tmp_path / "none")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
