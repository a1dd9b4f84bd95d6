"""The loop of a node, in virtual time."""

import asyncio
import json
from collections import Counter
from typing import Any, Self

import numpy as np
import pytest

from app.bench.fake_driver import library
from app.bench.fake_driver.library import FakeDriver
from collectors.agent import OPEN_AGAIN_SECONDS, NodeAgent
from collectors.errors import DriverNotFound, FieldFailure, UnknownSource
from collectors.frame_queue import FrameQueue
from collectors.framing import Framer
from collectors.nvml.source import NvmlGpus
from collectors.once import collect_once
from collectors.registry import SOURCES, SourceOptions, build_source
from collectors.simulated import Fault, FaultKind, SimulatedFleet
from collectors.source import METRICS, Column, EventRow, LinkRows, Source, SourceReading
from telemetry_bus import Frame, FrameError, FrameFault, Intake, Record, Topic, encode
from telemetry_bus.json_text import dumps
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.schemas import EventKind
from tests.collectors.virtual_time import CountingSource, RecordingBus, VirtualTime


def agent_of(
    source: Source, bus: RecordingBus, time: VirtualTime, hz: float = 1.0, queue: FrameQueue | None = None
) -> NodeAgent:
    """An agent of node-1 in virtual time; one that is given a queue sends one frame at a time."""
    given: dict[str, Any] = {} if queue is None else {"queue": queue, "sending": 1}
    return NodeAgent([source], bus.publish, time, node="node-1", region="eu-1", hz=hz, sleep=time.sleep, **given)


def powers(frames: list[Frame]) -> list[float]:
    """The power column over frames."""
    return [float(watts) for frame in frames for watts in frame.numbers("power_watts")[0]]


def simulated_agent(bus: RecordingBus, time: VirtualTime, fleet: SimulatedFleet) -> NodeAgent:
    """An agent of a simulated fleet."""
    return agent_of(fleet.build(), bus, time)


async def test_rows_are_read_on_a_grid_that_does_not_drift() -> None:
    """A reading that takes a while does not move the next one."""
    time, bus = VirtualTime(), RecordingBus()
    source = CountingSource(lambda _: time.advance(0.3))
    async with agent_of(source, bus, time, hz=0.5):
        await time.pass_by(10.3)
        frames = await bus.has(Topic.GPU, 6)
    times = np.concatenate([frame.times() for frame in frames])
    np.testing.assert_allclose(np.diff(times), 2.0)


async def test_a_reading_that_takes_too_long_skips_grid_points_and_counts_them() -> None:
    """Late is late: nothing is made up for the seconds in between, and the grid stays where it was."""
    time, bus = VirtualTime(), RecordingBus()
    source = CountingSource(lambda reading: time.advance(2.5 if reading == 1 else 0.0))
    async with agent_of(source, bus, time) as agent:
        await time.pass_by(5.0)
        frames = await bus.has(Topic.GPU, 4)
        assert agent.counters.ticks_missed == 2
    start = frames[0].times()[0]
    assert [float(frame.times()[0] - start) for frame in frames] == pytest.approx([0.0, 1.0, 4.0, 5.0])


async def test_a_source_with_a_pace_of_its_own_is_read_at_that_pace() -> None:
    """What is slow to read is read rarely, beside what is read each second."""
    time, bus = VirtualTime(), RecordingBus()
    source = CountingSource()
    source.period_seconds = 10.0
    async with agent_of(source, bus, time):
        await time.pass_by(20.0)
        frames = await bus.has(Topic.GPU, 3)
    np.testing.assert_allclose(np.diff([frame.times()[0] for frame in frames]), 10.0)


async def test_an_urgent_source_is_read_at_once_and_its_grid_stays() -> None:
    """What must not wait a second does not, and costs no later reading."""
    time, bus = VirtualTime(), RecordingBus()
    source = CountingSource()
    source.urgent = asyncio.Event()
    async with agent_of(source, bus, time) as agent:
        await time.pass_by(0.3)
        source.urgent.set()
        frames = await bus.has(Topic.GPU, 2)
        await time.pass_by(1.7)
        frames = await bus.has(Topic.GPU, 4)
    start = frames[0].times()[0]
    assert [float(frame.times()[0] - start) for frame in frames] == pytest.approx([0.0, 0.3, 1.0, 2.0])
    assert agent.counters.ticks_missed == 0


async def test_frames_are_counted_per_source_and_carry_node_region_and_time() -> None:
    """The far end can see what is missing: node-1/gpu counts 0, 1, 2, ... under one boot."""
    time, bus = VirtualTime(), RecordingBus()
    async with agent_of(CountingSource(), bus, time):
        await time.pass_by(2.0)
        frames = await bus.has(Topic.GPU, 3)
    runs = [run for frame in frames for run in frame.manifest]
    assert [(run.source, run.seq, run.rows) for run in runs] == [("node-1/gpu", seq, 1) for seq in range(3)]
    assert len({run.boot for run in runs}) == 1
    assert frames[0].strings("node") == ["node-1"]
    assert frames[0].strings("region") == ["eu-1"]


async def test_the_inventory_goes_out_first() -> None:
    """Before any row of a node, the stream says what the node is."""
    time, bus = VirtualTime(), RecordingBus()
    async with simulated_agent(bus, time, SimulatedFleet(20)):
        await bus.has(Topic.GPU, 1)
    assert [topic for topic, _ in bus.published] == [Topic.EVENTS, Topic.GPU]
    inventory = bus.frames(Topic.EVENTS)[0]
    assert inventory.strings("kind") == ["node_inventory"] * 3
    assert inventory.strings("node") == ["sim-0001", "sim-0002", "sim-0003"]
    details = [json.loads(text) for text in inventory.strings("detail") if text is not None]
    assert [len(detail["gpus"]) for detail in details] == [8, 8, 4]
    assert all(detail["simulated"] is True for detail in details)


async def test_sampling_goes_on_while_nobody_takes_frames_and_everything_follows_in_order() -> None:
    """With bus and spool away both, rows wait; none is lost, doubled or reordered, and their time is the reading's."""
    time, bus = VirtualTime(), RecordingBus()
    async with agent_of(CountingSource(), bus, time) as agent:
        await bus.has(Topic.GPU, 1)
        bus.away = True
        await time.pass_by(1.0)
        await time.pass_by(30.0, sleepers=2)
        assert agent.queue_depth == 29  # one is tried again, and the next is behind it
        bus.away = False
        await time.drive(lambda: bus.count(Topic.GPU) >= 37)
        frames = bus.frames(Topic.GPU)
        assert agent.counters.publish_retries > 0
        assert agent.counters.rows_dropped == 0
    assert powers(frames)[:37] == [float(index) for index in range(37)]
    assert [frame.manifest[0].seq for frame in frames][:37] == list(range(37))


async def test_an_answer_that_takes_longer_than_a_reading_drops_nothing() -> None:
    """A gateway merges for a quarter of a second: ten readings a second once filled the queue, one behind the other."""
    time, slow = VirtualTime(), RecordingBus()

    async def publish(topic: Topic, frame: Frame) -> None:
        await time.sleep(0.35)
        await slow.publish(topic, frame)

    agent = NodeAgent([CountingSource()], publish, time, node="node-1", hz=10.0, sleep=time.sleep)
    async with agent:
        await time.drive(lambda: slow.count(Topic.GPU) >= 60)
        assert agent.queue_depth == 0
        assert agent.counters.rows_dropped == 0
    assert powers(slow.frames(Topic.GPU))[:60] == [float(index) for index in range(60)]


async def test_a_frame_that_waited_is_stamped_with_the_moment_it_is_sent() -> None:
    """Else the far end would take the wait for a clock that is slow, and refuse or shift the rows."""
    time, bus = VirtualTime(), RecordingBus()
    bus.away = True
    async with agent_of(CountingSource(), bus, time):
        await time.pass_by(60.0, sleepers=2)
        bus.away = False
        await time.pass_by(5.0)
        first = (await bus.has(Topic.GPU, 1))[0]
        sent = time.now()
    intake = Intake()
    taken = intake.take(Record(Topic.GPU, 0, 0, first.manifest[0].sent + 0.01, encode(first)))
    assert taken.refusals == ()
    assert intake.clock_offsets == {}
    assert first.manifest[0].sent > first.times()[0] + 59.0
    assert first.manifest[0].sent <= sent + 1e-3


async def test_what_the_bound_forces_out_is_the_oldest_and_is_counted_and_told() -> None:
    """At the limit: which rows went, how many, and an event that says so once the bus is back."""
    time, bus = VirtualTime(), RecordingBus()
    bus.away = True
    async with agent_of(CountingSource(), bus, time, queue=FrameQueue(frames_max=4)) as agent:
        await time.pass_by(9.0, sleepers=2)
        assert agent.counters.rows_dropped == agent.counters.frames_dropped == 5
        bus.away = False
        await time.drive(lambda: bus.count(Topic.EVENTS) >= 1 and bus.count(Topic.GPU) >= 5)
        told, frames = bus.frames(Topic.EVENTS)[0], bus.frames(Topic.GPU)
    first, *others = powers(frames)[:5]
    assert first == 0.0  # it was on its way already
    assert others[0] >= 6.0
    assert others == [others[0] + index for index in range(4)]
    assert told.strings("kind") == ["rows_dropped"]
    detail = told.strings("detail")[0]
    assert detail is not None
    assert json.loads(detail)["rows"] >= 5
    assert told.numbers("simulated")[0].tolist() == [False]


async def test_an_event_overtakes_rows_and_outlives_them() -> None:
    """What is critical does not wait behind samples, and samples are dropped before it."""
    event = EventRow(EventKind.XID, "node-1", "XID 79", False, code=79)
    time, bus = VirtualTime(), RecordingBus()
    bus.away = True
    async with agent_of(CountingSource(events=[event]), bus, time, queue=FrameQueue(frames_max=3)):
        await time.pass_by(9.0, sleepers=2)
        bus.away = False
        await time.pass_by(5.0)
        await bus.has(Topic.GPU, 2)
    assert bus.published[0][0] is Topic.EVENTS
    assert bus.frames(Topic.EVENTS)[0].numbers("code")[0].tolist() == [79]


async def reading_of(source: Source) -> SourceReading:
    """One reading."""
    async with source:
        return await source.read(0.0)


async def test_the_queue_is_bounded_in_bytes_too() -> None:
    """Large frames force out old ones long before there are many."""
    reading = await reading_of(SimulatedFleet(2_000).build())
    assert reading.gpus is not None
    frame = next(iter(Framer(None).gpu_frames(reading.gpus, 0.0)))
    queue = FrameQueue(bytes_max=3 * frame.batch.get_total_buffer_size())
    dropped = [gone for _ in range(10) for gone in queue.put(Topic.GPU, frame)]
    assert len(queue) == 3
    assert [gone.rows for gone in dropped] == [2_000] * 7
    assert all(gone.simulated for gone in dropped)


async def test_a_frame_that_the_wire_refuses_is_counted_and_does_not_stop_the_rest() -> None:
    """Trying it for ever would hold up everything behind it."""
    time, bus = VirtualTime(), RecordingBus()

    async def publish(topic: Topic, frame: Frame) -> None:
        if frame.manifest[0].seq == 1:
            raise FrameError(FrameFault.TOO_LARGE, "far too large")
        await bus.publish(topic, frame)

    agent = NodeAgent([CountingSource()], publish, time, node="node-1", sleep=time.sleep)
    async with agent:
        await time.pass_by(3.0)
        frames = await bus.has(Topic.GPU, 3)
    assert powers(frames) == [0.0, 2.0, 3.0]
    assert agent.counters.frames_refused == 1
    assert agent.counters.frames_sent == 3


async def test_closing_sends_what_waits_and_closes_the_sources() -> None:
    """A clean end loses nothing while the bus is there."""
    time, bus = VirtualTime(), RecordingBus()
    source = CountingSource()
    async with agent_of(source, bus, time) as agent:
        while_working = source.open
        await time.all_asleep(1)
    assert (while_working, source.open) == (True, False)
    assert len(bus.frames(Topic.GPU)) == agent.counters.readings == 1


async def test_a_fault_of_a_source_ends_the_agent_loudly() -> None:
    """A source that breaks its promise is a bug, and nobody goes on as if nothing had been."""
    time, bus = VirtualTime(), RecordingBus()

    def fail(_reading: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await agent_of(CountingSource(fail), bus, time).run()
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_a_source_that_cannot_be_opened_is_told_and_those_before_it_are_closed(fake_driver: FakeDriver) -> None:
    """Half an agent does not stay behind."""
    (empty := fake_driver.file.parent / "empty").mkdir()
    time, bus, good = VirtualTime(), RecordingBus(), CountingSource()
    bad = NvmlGpus("node-1", environment={"LD_LIBRARY_PATH": str(empty)}).build(time)
    with pytest.raises(DriverNotFound):
        await NodeAgent([good, bad], bus.publish, time, node="node-1", sleep=time.sleep).run()
    assert not good.open


async def test_an_optional_source_that_is_not_there_is_named_tried_again_and_holds_nothing_up() -> None:
    """A driver that comes up late is read then; until that the node sends the rest."""

    class Late(CountingSource):
        name = "late"
        there = False

        async def __aenter__(self) -> Self:
            if not self.there:
                raise DriverNotFound("nothing")
            return await super().__aenter__()

    time, bus, late = VirtualTime(), RecordingBus(), Late()
    agent = NodeAgent([CountingSource()], bus.publish, time, node="node-1", optional=[late], sleep=time.sleep)
    async with agent:
        await time.pass_by(3.0)
        assert powers(await bus.has(Topic.GPU, 4)) == [0.0, 1.0, 2.0, 3.0]
        assert "Install the driver" in agent.unavailable["late"]
        late.there = True
        await time.pass_by(OPEN_AGAIN_SECONDS)
        assert late.open
        assert agent.unavailable == {}
    assert not late.open


async def test_failures_of_whole_readings_start_at_zero_and_those_of_fields_are_counted(
    fake_driver: FakeDriver,
) -> None:
    """What cannot be read is visible as a number, by field and reason."""
    fake_driver.say(library.MEMORY_TEMPERATURE, library.NOT_SUPPORTED)
    time, bus = VirtualTime(), RecordingBus()
    agent = agent_of(NvmlGpus("node-1", environment=fake_driver.environment).build(time), bus, time)
    assert set(agent.counters.field_failures.values()) == {0}
    assert set(agent.counters.field_failures) == {("*", reason) for reason in FieldFailure}
    async with agent:
        await time.pass_by(1.0)
    failures = agent.counters.field_failures
    # Two GPUs, two readings.
    assert failures[("memory_temperature_celsius", FieldFailure.UNSUPPORTED)] == 4
    assert sum(failures.values()) == 4


async def test_each_frame_goes_to_the_topic_of_its_rows() -> None:
    """Rows of links are none of GPUs."""

    class WithLinks(CountingSource):
        async def read(self, now: float) -> SourceReading:
            reading = await super().read(now)
            up = {"up": Column.of("up", [1.0])}
            links = LinkRows([("node-1", 1)], ["ethernet"], ["eth0"], [None], [None], [None], False, up)
            return SourceReading(reading.gpus, reading.events, links=links)

    time, bus = VirtualTime(), RecordingBus()
    told = EventRow(EventKind.DRIVER, "node-1", "something", False)
    async with agent_of(WithLinks(events=[told]), bus, time):
        for topic, schema in ((Topic.GPU, "gpu/1"), (Topic.LINKS, "link/1"), (Topic.EVENTS, "event/1")):
            assert [frame.schema_id for frame in await bus.has(topic, 1)] == [schema]


async def test_one_source_that_waits_does_not_hold_up_another() -> None:
    """Each source is read at its own pace."""
    time, bus, held = VirtualTime(), RecordingBus(), asyncio.Event()

    class Hanging(CountingSource):
        async def read(self, now: float) -> SourceReading:
            await held.wait()
            return await super().read(now)

    agent = NodeAgent([Hanging(), CountingSource()], bus.publish, time, node="node-1", sleep=time.sleep)
    async with agent:
        await time.pass_by(3.0)
        assert powers(await bus.has(Topic.GPU, 4)) == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("hz", [0.0, -1.0, 1e6, float("nan")])
def test_a_rate_out_of_bounds_is_refused(hz: float) -> None:
    """The message says what is allowed."""
    with pytest.raises(ValueError, match="at most 10 readings"):
        NodeAgent([], RecordingBus().publish, ManualClock(), node="node-1", hz=hz)


async def test_the_registry_builds_every_source_by_its_own_name() -> None:
    """The name in the table, in the configuration and of the source are one."""
    for name in SOURCES:
        assert build_source(name, SourceOptions("node-1"), ManualClock()).name == name


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    """The message lists what there is."""
    with pytest.raises(UnknownSource, match=r"'dcgm'.*nvml, simulated"):
        build_source("dcgm", SourceOptions("node-1"), ManualClock())


async def test_collecting_once_gives_rows_with_null_where_absent(fake_driver: FakeDriver) -> None:
    """A line a row, every metric named, absent as null, in the shortest digits; and the sources are closed."""
    fake_driver.say("power_usage", "71100", gpu=0)
    fake_driver.say("power_usage", library.NOT_SUPPORTED, gpu=1)
    clock = ManualClock()
    rows, _ = await collect_once([NvmlGpus("node-1", environment=fake_driver.environment).build(clock)], clock)
    assert Counter(row["schema"] for row in rows) == {"gpu/1": 2, "link/1": 36, "event/1": 1}
    assert [row["power_watts"] for row in rows[:2]] == [71.1, None]
    assert [(row["node"], row["gpu"], row["uuid"]) for row in rows[:2]] == [
        ("node-1", 0, "GPU-0"),
        ("node-1", 1, "GPU-1"),
    ]
    assert METRICS.keys() <= rows[0].keys()
    assert rows[0]["sm_active_ratio"] == 0.025  # which takes two readings, as every rate does
    assert rows[1]["encoder_utilization_percent"] == 3.0
    assert rows[0]["time"] == clock.now()
    assert rows[-1]["kind"] == "node_inventory"
    for row in rows:
        json.loads(dumps(row))


async def test_collecting_once_keeps_nan_zero_and_absent_apart() -> None:
    """In JSON a NaN is the string, zero is 0.0 and absent is null."""

    class Odd(CountingSource):
        async def read(self, now: float) -> SourceReading:
            reading = await super().read(now)
            assert reading.gpus is not None
            odd = {"temperature_celsius": float("nan"), "power_watts": 0.0, "power_limit_watts": None}
            for name, value in odd.items():
                reading.gpus.metrics[name] = Column.of(name, [value])  # type: ignore[index]
            return reading

    ((row,), _) = await collect_once([Odd()], ManualClock())
    printed = json.loads(dumps(row))
    assert [printed[name] for name in ("temperature_celsius", "power_watts", "power_limit_watts")] == ["NaN", 0.0, None]


async def test_a_fleet_of_many_nodes_is_one_run_a_node_and_loses_none_at_the_far_end() -> None:
    """A reader of the merged frames finds every node's frames complete, silence and loss of a GPU included."""
    faults = (Fault(FaultKind.GPU_LOST, 1.0, gpu=3), Fault(FaultKind.NODE_SILENT, 2.0, 4.0, node="sim-0600"))
    time, bus, intake = VirtualTime(), RecordingBus(), Intake()
    async with simulated_agent(bus, time, SimulatedFleet(5_000, faults=faults)):
        await time.pass_by(5.0)
        frames = await bus.has(Topic.GPU, 18)
    rows = 0
    for offset, (topic, payload) in enumerate(bus.published):
        taken = intake.take(Record(topic, 0, offset, time.now(), payload))
        assert taken.refusals == ()
        rows += taken.frame.rows if topic is Topic.GPU and taken.frame is not None else 0
    assert len(frames) == 18  # three of at most 256 nodes for each of six readings
    assert rows == 6 * 5_000 - 5 - 2 * 8
    assert {run.seq for frame in frames for run in frame.manifest if run.source == "sim-0600/gpu"} == {0, 1, 2, 3}
