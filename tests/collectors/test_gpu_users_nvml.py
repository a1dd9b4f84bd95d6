"""The processes that the driver lists: the real pynvml on the fake driver, from its list to the users' events."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bench.fake_driver import library
from app.bench.fake_driver.library import FakeDriver
from collectors.cost_class import CostClass
from collectors.gpu_users import GpuUsers, Place, UsersOfGpus
from collectors.gpu_users.processes import PROC, shows_host
from collectors.nvml.source import NvmlGpus
from telemetry_bus.runtime.clock import ManualClock
from tests.collectors.nvml_scene import SECOND, Scene
from tests.fakes.processes import running

NOW = 1_700_000_000.0
SLOW = frozenset({CostClass.SECOND, CostClass.SLOW})


def test_processes_are_listed_every_ten_seconds(nvml_scene: Scene) -> None:
    """Three kinds of use, each process once; in between nothing is said of them, which is not that there are none."""
    nvml_scene.say("compute_processes", "20 10")
    nvml_scene.say("graphics_processes", "10 30")
    assert nvml_scene.read(SLOW).pids == [10, 20, 30]
    assert nvml_scene.read(SECOND).pids is None
    nvml_scene.say("compute_processes", "0")
    nvml_scene.say("graphics_processes", "0")
    assert nvml_scene.read(SLOW).pids == []


def test_a_divided_gpu_s_processes_are_those_of_its_instances(nvml_scene: Scene) -> None:
    """Nobody is told twice, for the GPU and for its part."""
    nvml_scene.say("compute_processes", "77")
    nvml_scene.driver.divide(0, 0, 2)
    assert [made.pids for made in nvml_scene.read_all(SLOW)] == [[], [4_000], [4_002]]


@pytest.mark.parametrize("code", [library.NOT_SUPPORTED, library.NO_PERMISSION, library.UNKNOWN])
def test_a_list_that_is_refused_is_absent_and_costs_no_metric(nvml_scene: Scene, code: str) -> None:
    """Who uses it is not known, which is not nobody."""
    for kind in ("compute_processes", "mps_processes", "graphics_processes"):
        nvml_scene.say(kind, code)
    made = nvml_scene.read(SLOW)
    assert made.pids is None
    assert made.values["power_watts"] == 691.5


@pytest.mark.skipif(not shows_host(PROC), reason="this machine's /proc is that of a container")
async def test_from_the_driver_s_list_to_the_event(fake_driver: FakeDriver, tmp_path: Path) -> None:
    """The child lists a real process, the source of users reads its environment, and the event names its job."""
    users, clock = GpuUsers("node-1"), ManualClock()
    gpus = NvmlGpus("node-1", environment=fake_driver.environment, users=users).build(clock)
    told = UsersOfGpus("node-1", users, socket=tmp_path / "none", in_pod=False).build(clock)
    with running({"SLURM_JOB_ID": "42", "RANK": "1"}) as pid:
        fake_driver.say("compute_processes", str(pid), 1)
        async with gpus, told:
            await gpus.read(NOW)
            events = (await told.read(NOW)).events
            await gpus.read(NOW + 1.0)
    assert [(event.gpu, event.uuid, len(event.detail["users"])) for event in events] == [
        (0, "GPU-0", 0),
        (1, "GPU-1", 1),
    ]
    assert events[1].message == "node-1: GPU 1 is used by Slurm job 42 rank 1"
    assert set(users.users()) == {Place("GPU-0"), Place("GPU-1")}
