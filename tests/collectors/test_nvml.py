"""The real pynvml on the fake driver library."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psutil
import pytest

from app.bench.fake_driver import library
from app.bench.fake_driver.library import FakeDriver
from collectors.errors import DriverNotFound, DriverRefused, FieldFailure
from collectors.nvml.gpm import PERIOD_SECONDS_MIN
from collectors.nvml.sampling import NAMES
from collectors.nvml.source import ALL_HANG_SECONDS, NvmlGpus, NvmlSource
from collectors.profiling import ProfilingSwitch
from collectors.source import GpuRows, SourceReading
from telemetry_bus.metric_names import GPU_METRIC_NAMES
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.schemas import EventKind

NOW = 1_700_000_000.0
# Long enough for a busy machine, and still a bound for the tests in which the driver hangs.
DEADLINE_SECONDS = 2.0

Open = Callable[..., AbstractAsyncContextManager[tuple[NvmlSource, ManualClock]]]


@pytest.fixture
def opened(fake_driver: FakeDriver) -> Open:
    """Return an opener of the source on the fake driver, with its clock."""

    @asynccontextmanager
    async def open_source(**options: Any) -> AsyncIterator[tuple[NvmlSource, ManualClock]]:
        clock = ManualClock()
        options = {"environment": fake_driver.environment} | options
        async with NvmlGpus("node-1", **options).build(clock) as source:
            yield source, clock

    return open_source


def values(rows: GpuRows | None, name: str) -> list[float | None]:
    """One metric of every row, ``None`` where absent."""
    assert rows is not None
    if name not in rows.metrics:
        return [None] * rows.rows
    found: list[float | None] = rows.metrics[name].to_arrow().to_pylist()
    return found


def states(reading: SourceReading) -> list[str]:
    """What the driver events of a reading say."""
    return [event.detail["state"] for event in reading.events if event.kind is EventKind.DRIVER]


async def test_every_value_arrives_in_its_unit(opened: Open) -> None:
    """mW become W, bytes MiB, mJ J; counts, clocks and bits stay as they are."""
    async with opened() as (source, _):
        rows = (await source.read(NOW)).gpus
    expected = {
        "gpu_utilization_percent": 97.0,
        "memory_copy_utilization_percent": 42.0,
        "memory_used_mib": 70_000.0,
        "memory_total_mib": 81_559.0,
        "temperature_celsius": 61.0,
        "memory_temperature_celsius": 70.0,
        "power_watts": 691.5,
        "power_limit_watts": 700.0,
        "energy_joules": 1_234_567_890.123,
        "sm_clock_mhz": 1755.0,
        "memory_clock_mhz": 2619.0,
        "performance_state": 0.0,
        "clocks_event_reasons": 4,
        "pcie_link_generation": 5.0,
        "pcie_link_width": 16.0,
        "pcie_replay_count": 3,
        "ecc_corrected_volatile_count": 0,
        "ecc_uncorrected_volatile_count": 0,
        "row_remap_uncorrected_count": 0,
        "row_remap_pending": 0.0,
        "row_remap_failed": 0.0,
    }
    assert {name: values(rows, name)[0] for name in expected} == expected
    assert set(NAMES) >= expected.keys()
    assert rows is not None
    assert rows.uuid.to_pylist() == ["GPU-0", "GPU-1"]


def test_nvml_is_asked_only_for_metrics_of_the_closed_set() -> None:
    """The child cannot import the schema; its names are held to it here."""
    assert set(NAMES) <= set(GPU_METRIC_NAMES)
    assert len(NAMES) == len(set(NAMES))


async def test_what_nvml_is_not_asked_for_is_null_and_no_failure(opened: Open) -> None:
    """Not read is null; a failure is counted only for what was asked."""
    async with opened() as (source, _):
        reading = await source.read(NOW)
    assert not reading.failures
    for name in set(GPU_METRIC_NAMES) - set(NAMES):
        assert values(reading.gpus, name) == [None, None]


@pytest.mark.parametrize("key", ["utilization_gpu", library.MEMORY_TEMPERATURE], ids=["call", "field"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (library.NOT_SUPPORTED, FieldFailure.UNSUPPORTED),
        (library.NO_PERMISSION, FieldFailure.NOT_PERMITTED),
        (library.UNKNOWN, FieldFailure.DRIVER_ERROR),
    ],
    ids=["unsupported", "not permitted", "driver error"],
)
async def test_a_refused_field_is_null_and_counted_and_takes_no_other_with_it(
    opened: Open, fake_driver: FakeDriver, key: str, code: str, reason: FieldFailure
) -> None:
    """Each field degrades alone, on its own GPU, with its reason."""
    fake_driver.say(key, code, gpu=1)
    names = {
        "utilization_gpu": ("gpu_utilization_percent", "memory_copy_utilization_percent"),
        library.MEMORY_TEMPERATURE: ("memory_temperature_celsius",),
    }[key]
    async with opened() as (source, _):
        reading = await source.read(NOW)
    for name in names:
        first, second = values(reading.gpus, name)
        assert first is not None
        assert second is None
    assert reading.failures == {(name, reason): 1 for name in names}
    assert values(reading.gpus, "power_watts") == [691.5, 691.5]


async def test_slow_metrics_are_read_every_ten_seconds_and_profiling_from_the_second_reading_on(opened: Open) -> None:
    """Null in between: not read. A ratio of profiling is the difference of two readings."""
    async with opened() as (source, _):
        first = (await source.read(NOW)).gpus
        await asyncio.sleep(PERIOD_SECONDS_MIN)  # GPM gives nothing for less
        second = (await source.read(NOW + 1)).gpus
        later = (await source.read(NOW + 10)).gpus
    assert [values(rows, "ecc_corrected_volatile_count")[0] for rows in (first, second, later)] == [0, None, 0]
    assert [values(rows, "power_watts")[0] for rows in (first, second, later)] == [691.5] * 3
    assert values(first, "sm_active_ratio") == [None, None]
    assert all(ratio is not None and 0.0 <= ratio <= 1.0 for ratio in values(second, "sm_active_ratio"))


async def test_mig_instances_are_rows_of_their_own_behind_their_gpu(opened: Open, fake_driver: FakeDriver) -> None:
    """The card keeps its row; each instance has its own uuid and name."""
    fake_driver.divide(0, 2, 3)
    async with opened() as (source, _):
        rows = (await source.read(NOW)).gpus
    assert rows is not None
    assert rows.instance is not None
    assert rows.gpu.tolist() == [0, 0, 0, 1]
    assert rows.instance.to_pylist() == [None, "9/0", "10/0", None]
    assert len(set(rows.uuid.to_pylist())) == 4


async def test_zero_absent_and_nan_are_three_answers(opened: Open, fake_driver: FakeDriver) -> None:
    """0 is a value, unsupported is null, and a NaN of the driver stays a NaN."""
    fake_driver.say(library.MEMORY_TEMPERATURE, "0u", gpu=0)
    fake_driver.say(library.MEMORY_TEMPERATURE, library.NOT_SUPPORTED, gpu=1)
    fake_driver.say(library.ENERGY, "nan", gpu=0)
    async with opened() as (source, _):
        rows = (await source.read(NOW)).gpus
    assert values(rows, "memory_temperature_celsius") == [0.0, None]
    energy = values(rows, "energy_joules")[0]
    assert energy is not None
    assert energy != energy  # noqa: PLR0124  # NaN


async def test_the_marks_for_not_available_are_null(opened: Open, fake_driver: FakeDriver) -> None:
    """NVML's -1 and its P-state 32 mean unknown, whatever type they come in."""
    fake_driver.say("performance_state", "32")
    fake_driver.say("memory_total", str((1 << 64) - 1))
    fake_driver.say(library.ECC_CORRECTED, str((1 << 64) - 1))
    async with opened() as (source, _):
        rows = (await source.read(NOW)).gpus
    for name in ("performance_state", "memory_total_mib", "memory_used_mib", "ecc_corrected_volatile_count"):
        assert values(rows, name) == [None, None]


async def test_when_the_batched_call_fails_the_other_calls_still_give_values(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """An old driver without field values is read as far as it goes."""
    fake_driver.say("fields", "!13")
    async with opened() as (source, _):
        reading = await source.read(NOW)
    assert values(reading.gpus, "energy_joules") == [None, None]
    assert reading.failures[("energy_joules", FieldFailure.UNSUPPORTED)] == 2
    assert values(reading.gpus, "temperature_celsius") == [61.0, 61.0]


async def test_a_gpu_lost_midway_has_no_row_and_one_event_and_the_others_go_on(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """A card that fell off the bus is told once, and its neighbours keep coming; so is its return."""
    async with opened() as (source, _):
        before = await source.read(NOW)
        fake_driver.lose(0)
        lost = await source.read(NOW + 1)
        still = await source.read(NOW + 2)
        fake_driver.heal()
        back = await source.read(NOW + 3)
    assert before.gpus is not None
    assert before.gpus.rows == 2
    for reading in (lost, still):
        assert reading.gpus is not None
        assert reading.gpus.uuid.to_pylist() == ["GPU-1"]
        assert reading.failures[("power_watts", FieldFailure.GPU_LOST)] == 1
    assert [(event.gpu, event.uuid) for event in lost.events] == [(0, "GPU-0")]
    assert [states(reading) for reading in (lost, still, back)] == [["gpu_lost"], [], ["gpu_back"]]
    assert back.gpus is not None
    assert back.gpus.uuid.to_pylist() == ["GPU-0", "GPU-1"]


async def test_a_gpu_that_was_reset_is_found_again_under_its_new_handle(opened: Open, fake_driver: FakeDriver) -> None:
    """A handle from before the reset stays dead; the reader asks for another one."""
    async with opened() as (source, _):
        await source.read(NOW)
        fake_driver.say("generation", "1", gpu=0)
        lost = await source.read(NOW + 1)
        back = await source.read(NOW + 2)
    assert [states(lost), states(back)] == [["gpu_lost"], ["gpu_back"]]
    assert values(back.gpus, "temperature_celsius") == [61.0, 61.0]


async def test_a_gpu_lost_before_the_start_leaves_the_others(opened: Open, fake_driver: FakeDriver) -> None:
    """One dead card does not keep a collector from starting."""
    fake_driver.lose(1)
    async with opened() as (source, _):
        reading = await source.read(NOW)
    assert reading.gpus is not None
    assert reading.gpus.gpu.tolist() == [0]
    assert states(reading) == ["gpu_lost"]


async def test_no_library_is_a_clear_error_that_says_what_to_do(opened: Open, fake_driver: FakeDriver) -> None:
    """On a machine without a driver the message names the library and the ways out."""
    (empty := fake_driver.file.parent / "empty").mkdir()
    with pytest.raises(DriverNotFound, match=r"libnvidia-ml\.so\.1.*Install the driver.*--simulate"):
        async with opened(environment={"LD_LIBRARY_PATH": str(empty)}):
            pass


async def test_a_library_that_does_not_start_is_refused_with_the_drivers_reason(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """A driver that was updated under a running kernel module says so."""
    fake_driver.say("init", "!18")
    with pytest.raises(DriverRefused, match=r"mismatch.*nvidia-smi"):
        async with opened():
            pass


async def test_a_driver_that_hangs_at_the_start_is_told_and_read_when_it_answers(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """Opening does not wait for it: the node's other sources have something to say."""
    fake_driver.say("init", library.HANG)
    async with opened(open_seconds=0.2, read_deadline_seconds=DEADLINE_SECONDS) as (source, _):
        hung = await source.read(NOW)
        assert "did not answer" in source.unreadable()[0]
        fake_driver.heal()
        back = await source.read(NOW + 3)
        assert source.starts == 1
    assert hung.gpus is None
    assert hung.failures == {("*", FieldFailure.NO_ANSWER): 1}
    assert [states(hung), states(back)] == [["hung"], ["answers"]]
    assert values(back.gpus, "temperature_celsius") == [61.0, 61.0]


async def test_a_start_that_takes_longer_than_any_card_needs_is_begun_anew(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """A process that hangs in its start is killed in the end."""
    fake_driver.say("init", library.HANG)
    options = {"open_seconds": 0.1, "read_deadline_seconds": 0.1, "start_deadline_seconds": 60.0}
    async with opened(**options) as (source, clock):
        first = source.child_pid
        clock.advance(61.0)
        await source.read(NOW)
        assert first is not None
        assert not psutil.pid_exists(first)
        clock.advance(2.0)
        await source.read(NOW + 1)
        assert source.starts == 2


async def test_a_driver_without_gpus_has_an_inventory_and_no_rows(fake_driver: FakeDriver, opened: Open) -> None:
    """No GPU is an answer, not an error."""
    fake_driver.say("count", "0")
    async with opened() as (source, _):
        reading = await source.read(NOW)
    assert reading.gpus is None
    assert [event.detail["gpus"] for event in reading.events] == [[]]


async def test_a_gpu_that_hangs_is_told_once_and_the_others_go_on_each_time(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """A call into the driver may never return: it is left behind, and read again when it has returned after all."""
    async with opened() as (source, _):
        await source.read(NOW)
        child = source.child_pid
        fake_driver.say("temperature", library.HANG, gpu=0)
        hung = [await source.read(NOW + second) for second in (1, 2, 3)]
        assert source.unreadable() == ["GPU 0 does not answer"]
        fake_driver.heal()
        async with asyncio.timeout(20):
            while states(await source.read(NOW + 4)) != ["answers"]:
                pass
        back = await source.read(NOW + 5)
        assert source.child_pid == child
    assert [states(reading) for reading in hung] == [["hung"], [], []]
    for reading in hung:
        assert values(reading.gpus, "temperature_celsius") == [61.0]
        assert reading.failures == {("*", FieldFailure.NO_ANSWER): 1}
    (told,) = hung[0].events
    assert (told.gpu, told.uuid) == (0, "GPU-0")
    assert values(back.gpus, "temperature_celsius") == [61.0, 61.0]


async def test_where_every_gpu_hangs_another_process_is_tried(opened: Open, fake_driver: FakeDriver) -> None:
    """What hangs may be a lock of the library's own."""
    async with opened() as (source, clock):
        await source.read(NOW)
        first = source.child_pid
        fake_driver.say("temperature", library.HANG)
        hung = await source.read(NOW + 1)
        assert first is not None
        assert psutil.pid_exists(first)
        clock.advance(ALL_HANG_SECONDS)
        await source.read(NOW + 2)
        assert not psutil.pid_exists(first)
        fake_driver.heal()
        clock.advance(source.config.backoff_first_seconds)
        back = await source.read(NOW + 3)
        assert source.starts == 2
    assert hung.gpus is None
    assert states(hung) == ["hung", "hung", "hung"]
    assert [event.gpu for event in hung.events] == [0, 1, None]
    assert states(back) == ["answers"]
    assert values(back.gpus, "temperature_celsius") == [61.0, 61.0]


async def test_a_gpu_that_appears_later_is_named_by_a_new_inventory(opened: Open, fake_driver: FakeDriver) -> None:
    """It is looked for every 30 s; the reader starts anew, and its rows come with the next reading."""
    async with opened() as (source, _):
        await source.read(NOW)
        fake_driver.say("uuid", "GPU-2", gpu=2)
        fake_driver.say("count", "3")
        await source.read(NOW + 31)
        found = await source.read(NOW + 32)
    assert found.gpus is not None
    assert found.gpus.uuid.to_pylist() == ["GPU-0", "GPU-1", "GPU-2"]
    (inventory,) = [event for event in found.events if event.kind is EventKind.NODE_INVENTORY]
    assert [gpu["uuid"] for gpu in inventory.detail["gpus"]] == ["GPU-0", "GPU-1", "GPU-2"]


async def test_a_gpu_that_the_driver_does_not_list_any_more_is_lost(opened: Open, fake_driver: FakeDriver) -> None:
    """Its number may be another's now: it is known by its uuid."""
    async with opened() as (source, _):
        await source.read(NOW)
        fake_driver.say("count", "1")
        fake_driver.say("uuid", "GPU-1", gpu=0)
        await source.read(NOW + 31)
        lost = await source.read(NOW + 32)
    assert states(lost) == ["gpu_lost"]
    (event,) = [event for event in lost.events if event.kind is EventKind.DRIVER]
    assert event.uuid == "GPU-0"


async def test_profiling_that_is_paused_is_null_and_no_failure(opened: Open) -> None:
    """Whoever runs Nsight has the counters for himself."""
    switch = ProfilingSwitch()
    async with opened(profiling=switch) as (source, _):
        await source.read(NOW)
        await asyncio.sleep(PERIOD_SECONDS_MIN)
        before = await source.read(NOW + 1)
        switch.pause(60.0, NOW + 1)
        paused = [await source.read(NOW + second) for second in (2, 3)]
        await source.read(NOW + 62)
        await asyncio.sleep(PERIOD_SECONDS_MIN)
        after = await source.read(NOW + 63)
    for reading, given in ((before, True), (paused[0], False), (paused[1], False), (after, True)):
        found = values(reading.gpus, "tensor_active_ratio")
        assert all((value is not None) == given for value in found)
        assert not [name for name, _ in reading.failures if name == "tensor_active_ratio"]


async def test_chosen_metrics_are_read_at_every_reading_and_the_others_once_a_second(
    opened: Open, fake_driver: FakeDriver
) -> None:
    """Ten times a second is for a few: the rest repeats what is less than a second old."""
    async with opened(fast=("power_watts",)) as (source, _):
        await source.read(NOW)
        fake_driver.say("power_usage", "100000")
        fake_driver.say("temperature", "80")
        soon = await source.read(NOW + 0.1)
        later = await source.read(NOW + 1.1)
    assert (values(soon.gpus, "power_watts"), values(later.gpus, "power_watts")) == ([100.0] * 2, [100.0] * 2)
    assert values(soon.gpus, "temperature_celsius") == [61.0, 61.0]
    assert values(later.gpus, "temperature_celsius") == [80.0, 80.0]


async def test_the_wait_between_restarts_doubles_up_to_its_bound(opened: Open, fake_driver: FakeDriver) -> None:
    """A driver that stays broken is not hammered."""
    async with opened() as (source, clock):
        assert source.child_pid is not None
        os.kill(source.child_pid, signal.SIGKILL)
        fake_driver.say("init", library.UNKNOWN)
        await source.read(NOW)
        starts = []
        for _ in range(16):
            clock.advance(1.0)
            await source.read(NOW)
            starts.append(source.starts - 1)
    # Tries after 1, 3, 7 and 15 seconds.
    assert starts == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4]


async def test_a_killed_child_is_told_and_replaced(opened: Open) -> None:
    """Whoever kills the child costs some readings, not the collector."""
    async with opened() as (source, clock):
        await source.read(NOW)
        assert source.child_pid is not None
        os.kill(source.child_pid, signal.SIGKILL)
        died = await source.read(NOW + 1)
        clock.advance(source.config.backoff_first_seconds)
        back = await source.read(NOW + 2)
    assert [states(died), states(back)] == [["died"], ["answers"]]
    assert back.gpus is not None


async def test_closing_leaves_no_process(opened: Open, fake_driver: FakeDriver) -> None:
    """The child ends with its source, even while it hangs in the driver."""
    fake_driver.say("temperature", library.HANG)
    async with opened() as (source, _):
        pid = source.child_pid
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.read(NOW), 0.1)
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_the_child_dies_with_a_collector_that_is_killed(fake_driver: FakeDriver) -> None:
    """Not even a child that hangs in the driver outlives its collector."""
    code = """
import asyncio
from collectors.nvml.source import NvmlGpus
from telemetry_bus.runtime.clock import SystemClock

async def main():
    async with NvmlGpus("node-1", read_deadline_seconds=3600).build(SystemClock()) as source:
        print(source.child_pid, flush=True)
        await source.read(0.0)

asyncio.run(main())
"""
    fake_driver.say("temperature", library.HANG)
    environment = {**os.environ, **fake_driver.environment}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(timeout=30)
    assert not child.is_running()


def test_the_child_carries_neither_arrow_nor_numpy() -> None:
    """It is one process a node beside the collector: what it imports is paid on every node."""
    code = (
        "import sys, collectors.nvml.child; print(sorted({'pyarrow', 'numpy', 'telemetry_bus'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
