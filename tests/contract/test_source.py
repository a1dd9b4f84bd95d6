"""The contract of a source of GPU rows, held by every implementation alike."""

from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.errors import SourceClosed
from collectors.framing import Framer
from collectors.nvml.source import NvmlGpus
from collectors.registry import SOURCES
from collectors.simulated import SimulatedFleet
from collectors.source import METRICS, GpuRows, Source
from telemetry_bus import decode, encode
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.schemas import EventKind
from tests.fakes.nvml.library import FakeDriver, compile_fake

NOW = 1_700_000_000.0
MakeSource = Callable[[], Source]


@pytest.fixture(scope="module")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled fake `libnvidia-ml.so.1`."""
    return compile_fake(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(params=sorted(SOURCES))
def make_source(request: pytest.FixtureRequest, fake_library: Path, tmp_path: Path) -> MakeSource:
    """Return a maker of the source under test, each with GPUs to read."""
    driver = FakeDriver(fake_library, tmp_path / "nvml")
    makers: dict[str, MakeSource] = {
        "nvml": lambda: NvmlGpus("node-1", environment=driver.environment).build(ManualClock()),
        "simulated": lambda: SimulatedFleet(12).build(),
    }
    maker: MakeSource = makers[request.param]
    assert maker().name == request.param
    return maker


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


async def test_reading_before_opening_or_after_closing_is_refused(make_source: MakeSource) -> None:
    """A source lives inside its `async with`."""
    source = make_source()
    with pytest.raises(SourceClosed, match="async with"):
        await source.read(NOW)
    async with source:
        await source.read(NOW)
    with pytest.raises(SourceClosed):
        await source.read(NOW)


async def test_closing_twice_does_nothing_more(make_source: MakeSource) -> None:
    """Closing is idempotent."""
    source = make_source()
    async with source:
        pass
    await source.__aexit__(None, None, None)
