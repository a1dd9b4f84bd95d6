"""The contract of a source, held by every implementation alike; and what one of GPUs holds besides."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.bench.fake_driver.library import FakeDriver, compile_fake
from collectors.dcgm_exporter import DcgmExporter
from collectors.errors import SourceClosed
from collectors.framing import Framer
from collectors.gpu_users import GpuUsers, UsersOfGpus
from collectors.kernel_log import KernelLog
from collectors.network import Network
from collectors.nvml.source import NvmlGpus
from collectors.registry import BESIDE_GPUS, SOURCES
from collectors.simulated import SimulatedFleet
from collectors.source import LINKS, METRICS, GpuRows, Source
from collectors.xids import XidLedger
from telemetry_bus import decode, encode
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.schemas import EventKind
from tests.fakes.exporter import Exporter
from tests.fakes.sysfs import Sysfs

NOW = 1_700_000_000.0
MakeSource = Callable[[], Source]
Makers = dict[str, MakeSource]
GPU_SOURCES = sorted(SOURCES.keys() - set(BESIDE_GPUS))


@pytest.fixture(scope="module")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled fake `libnvidia-ml.so.1`."""
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
async def exporter() -> AsyncIterator[Exporter]:
    """Return a running dcgm-exporter."""
    async with Exporter() as running:
        yield running


@pytest.fixture
def makers(fake_library: Path, tmp_path: Path, exporter: Exporter) -> Makers:
    """Return a maker of every source, each with something to read."""
    driver = FakeDriver(fake_library, tmp_path / "nvml")
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.infiniband("mlx5_0")
    sysfs.ethernet("eth0")
    (log := tmp_path / "kern.log").write_text("")
    users = GpuUsers("node-1")
    users.saw_processes("GPU-0", None, [os.getpid()], NOW)
    clock = ManualClock()
    return {
        "nvml": lambda: NvmlGpus("node-1", environment=driver.environment).build(clock),
        "simulated": lambda: SimulatedFleet(12).build(),
        "dcgm_exporter": lambda: DcgmExporter((Secret(exporter.url),), "node-1").build(clock),
        "kernel_log": lambda: KernelLog("node-1", XidLedger("node-1"), log).build(clock),
        "network": lambda: Network("node-1", sysfs.root).build(clock),
        "gpu_users": lambda: UsersOfGpus("node-1", users, socket=tmp_path / "absent").build(clock),
    }


@pytest.fixture(params=sorted(SOURCES))
def make_any(request: pytest.FixtureRequest, makers: Makers) -> MakeSource:
    """Return a maker of the source under test, whatever it reads."""
    maker = makers[request.param]
    assert maker().name == request.param
    return maker


@pytest.fixture(params=GPU_SOURCES)
def make_source(request: pytest.FixtureRequest, makers: Makers) -> MakeSource:
    """Return a maker of the source of GPUs under test."""
    return makers[request.param]


def rows_of(rows: GpuRows | None) -> GpuRows:
    """The rows, which must be there."""
    assert rows is not None
    return rows


async def test_the_first_reading_carries_the_inventory_of_every_node_and_the_next_does_not(
    make_source: MakeSource,
) -> None:
    """A node says what it has when it starts, once."""
    async with make_source() as source:
        first = await source.read(NOW)
        second = await source.read(NOW + 1.0)
    told = [event.node for event in first.events if event.kind is EventKind.NODE_INVENTORY]
    assert told == [node for node, _ in rows_of(first.gpus).nodes]
    assert not [event for event in second.events if event.kind is EventKind.NODE_INVENTORY]


async def test_the_inventory_names_host_driver_and_every_gpu_of_the_rows(make_source: MakeSource) -> None:
    """Who reads a uuid in a row finds its card in an inventory."""
    async with make_source() as source:
        reading = await source.read(NOW)
    inventories = [event.detail for event in reading.events if event.kind is EventKind.NODE_INVENTORY]
    assert all({"hostname", "driver_version", "gpus", "simulated"} <= detail.keys() for detail in inventories)
    listed = [gpu["uuid"] for detail in inventories for gpu in detail["gpus"]]
    assert listed == rows_of(reading.gpus).uuid.to_pylist()


async def test_every_column_is_a_known_metric_with_a_value_and_a_validity_for_every_row(
    make_source: MakeSource,
) -> None:
    """Absent is said by validity alone, never by a number."""
    async with make_source() as source:
        rows = rows_of((await source.read(NOW)).gpus)
    assert rows.metrics.keys() <= METRICS.keys()
    for column in rows.metrics.values():
        assert column.values.shape == column.valid.shape == (rows.rows,)
        assert column.valid.dtype == bool
    assert rows.rows == sum(count for _, count in rows.nodes) == len(rows.uuid)


async def test_a_reading_becomes_frames_that_any_reader_takes(make_source: MakeSource) -> None:
    """What a source gives passes the bus's own validation, with one run for each node."""
    async with make_source() as source:
        reading = await source.read(NOW)
    framer = Framer("eu-1")
    frames = [*framer.gpu_frames(rows_of(reading.gpus), NOW), *framer.event_frames(reading.events, NOW)]
    for frame in frames:
        assert decode(encode(frame)) == frame
    gpu = frames[0]
    assert [(run.source, run.rows) for run in gpu.manifest] == [(f"{n}/gpu", c) for n, c in rows_of(reading.gpus).nodes]
    assert set(gpu.strings("region")) == {"eu-1"}


async def test_power_and_energy_are_watts_and_joules_of_a_real_card(make_source: MakeSource) -> None:
    """Units are converted once, at the source: a card draws tens to hundreds of watts."""
    async with make_source() as source:
        metrics = rows_of((await source.read(NOW)).gpus).metrics
    assert ((metrics["power_watts"].values > 30) & (metrics["power_watts"].values < 1_500)).all()
    assert (metrics["energy_joules"].values > 0).all()
    assert metrics["energy_joules"].values.dtype == "float64"


async def test_rows_and_events_agree_on_whether_they_are_simulated(make_source: MakeSource) -> None:
    """Nothing simulated passes for real, nor the other way round."""
    async with make_source() as source:
        reading = await source.read(NOW)
        expected = source.name == "simulated"
    assert rows_of(reading.gpus).simulated is expected
    assert {event.simulated for event in reading.events} == {expected}


async def test_whatever_a_source_gives_becomes_frames_that_any_reader_takes(make_any: MakeSource) -> None:
    """Rows of GPUs and of links, and events: all of it passes the bus's own validation."""
    async with make_any() as source:
        reading = await source.read(NOW)
    framer = Framer("eu-1")
    frames = list(framer.event_frames(reading.events, NOW))
    if reading.gpus is not None:
        frames += framer.gpu_frames(reading.gpus, NOW)
    if reading.links is not None:
        assert reading.links.metrics.keys() <= LINKS.keys()
        frames += framer.link_frames(reading.links, NOW)
    for frame in frames:
        assert decode(encode(frame)) == frame


async def test_what_could_not_be_read_is_said_in_words(make_any: MakeSource) -> None:
    """A person reads it: texts, and none that is empty."""
    async with make_any() as source:
        await source.read(NOW)
        said = source.unreadable()
    assert all(text.strip() for text in said)


async def test_a_source_says_how_often_it_wants_to_be_read(make_any: MakeSource) -> None:
    """At the agent's own pace, or at one of its own."""
    async with make_any() as source:
        assert source.period_seconds is None or source.period_seconds > 0


async def test_reading_before_opening_or_after_closing_is_refused(make_any: MakeSource) -> None:
    """A source lives inside its `async with`."""
    source = make_any()
    with pytest.raises(SourceClosed, match="async with"):
        await source.read(NOW)
    async with source:
        await source.read(NOW)
    with pytest.raises(SourceClosed):
        await source.read(NOW)


async def test_closing_twice_does_nothing_more(make_any: MakeSource) -> None:
    """Closing is idempotent."""
    source = make_any()
    async with source:
        pass
    await source.__aexit__(None, None, None)
