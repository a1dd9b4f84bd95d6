"""The simulated fleet: marked, deterministic, near what was fitted, and with the faults that it was told to have."""

import math
from typing import Any

import numpy as np
import pytest

from collectors.errors import InvalidFault, InvalidSimulation
from collectors.framing import NODES_PER_FRAME_MAX, Framer
from collectors.simulated import Fault, FaultKind, SimulatedFleet
from collectors.simulation_faults import HW_THERMAL, POWER_BRAKE, SW_THERMAL
from collectors.simulation_model import parameters
from collectors.source import SourceReading
from telemetry_bus import decode, encode, merge
from telemetry_bus.frames import FRAME_BYTES_MAX, Array
from telemetry_bus.metric_names import GPU_METRIC_NAMES
from telemetry_bus.schemas import EventKind

NOW = 1_700_000_000.0
RECORDED = {
    *parameters().signals,
    "memory_total_mib",
    "temperature_celsius",
    "energy_joules",
    "clocks_event_reasons",
}


def fault(kind: FaultKind, **options: Any) -> Fault:
    """A fault from 5 s to 10 s on the second GPU of the second node, or on the node."""
    where: dict[str, Any] = {} if kind in {FaultKind.NODE_SILENT, FaultKind.DRIVER_HUNG} else {"gpu": 1}
    default: dict[str, Any] = {"at_seconds": 5.0, "until_seconds": 10.0, "node": "sim-0002"}
    return Fault(kind, **(default | where | options))


def readings(fleet: SimulatedFleet, seconds: int) -> list[SourceReading]:
    """One reading a second."""
    source = fleet.build()
    return [source.reading(NOW + second) for second in range(seconds)]


def gpus_of(reading: SourceReading, node: str) -> list[int]:
    """Which GPUs of a node have rows."""
    assert reading.gpus is not None
    at = 0
    for name, count in reading.gpus.nodes:
        if name == node:
            return [int(gpu) for gpu in reading.gpus.gpu[at : at + count]]
        at += count
    return []


def value(reading: SourceReading, node: int, gpu: int, name: str) -> float:
    """One number of a fleet in which no GPU is missing."""
    assert reading.gpus is not None
    column = reading.gpus.metrics[name]
    assert column.valid[node * 8 + gpu]
    return float(column.values[node * 8 + gpu])


def told(reading: SourceReading) -> list[tuple[EventKind, str, int | None, int | None]]:
    """What a reading's events say, inventories aside."""
    events = [event for event in reading.events if event.kind is not EventKind.NODE_INVENTORY]
    return [(event.kind, event.node, event.gpu, event.code) for event in events]


@pytest.mark.parametrize("gpus", [1, 7, 1_000, 300_000])
def test_every_gpu_has_one_row_and_everything_is_marked_as_simulated(gpus: int) -> None:
    """However large the fleet, each GPU is there once, and nothing of it can pass for real."""
    columns = SimulatedFleet(gpus).build().columns(NOW)
    assert {len(column) for column in columns.values()} == {gpus}
    assert columns["simulated"].all()
    assert len(np.unique(columns["uuid"])) == gpus
    assert np.char.startswith(columns["uuid"], "SIM-").all()
    assert np.char.startswith(columns["node"], "sim-").all()
    assert len(np.unique(columns["node"])) == math.ceil(gpus / 8)
    for name in RECORDED:
        assert np.isfinite(columns[name]).all(), name


def test_frames_and_events_say_that_they_are_simulated() -> None:
    """The mark goes all the way to the wire, in every row and every event, faults and inventories included."""
    faults = tuple(fault(kind, code=99 if kind is FaultKind.XID else None) for kind in FaultKind)
    framer = Framer(None)
    for reading in readings(SimulatedFleet(40, faults=faults), 12):
        assert reading.gpus is not None
        for frame in [*framer.gpu_frames(reading.gpus, NOW), *framer.event_frames(reading.events, NOW)]:
            simulated, valid = decode(encode(frame)).numbers("simulated")
            assert simulated.all()
            assert valid.all()


def test_the_largest_frame_of_the_largest_nodes_is_one_that_readers_take() -> None:
    """However the fleet is cut into nodes, its frames stay below the bus's bound."""
    reading = SimulatedFleet(NODES_PER_FRAME_MAX * 64, gpus_per_node=64).build().reading(NOW)
    assert reading.gpus is not None
    (frame,) = Framer("a-region-with-a-long-name").gpu_frames(reading.gpus, NOW)
    assert len(encode(frame)) < FRAME_BYTES_MAX / 2


def test_only_what_the_recordings_have_is_not_null() -> None:
    """No clock, link, ECC counter or memory temperature is made up."""
    columns = SimulatedFleet(16).build().columns(NOW)
    assert columns.keys() & set(GPU_METRIC_NAMES) == RECORDED


def test_the_same_seed_and_times_give_the_same_numbers_and_another_seed_others() -> None:
    """A simulation can be repeated."""

    def run(seed: int) -> list[dict[str, Array]]:
        source = SimulatedFleet(50, seed=seed).build()
        return [source.columns(NOW + second) for second in (0.0, 1.0, 1.5, 60.0)]

    first, again, other = run(3), run(3), run(4)
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(first[1]["power_watts"], other[1]["power_watts"])


def test_energy_is_the_sum_of_power_and_survives_a_clock_that_steps_back() -> None:
    """The counter grows by what is drawn, and never goes back."""
    source = SimulatedFleet(24).build()
    run = [source.columns(NOW + second) for second in range(30)]
    drawn = np.sum([columns["power_watts"] for columns in run[1:]], axis=0)
    energy = run[-1]["energy_joules"]
    np.testing.assert_allclose(energy - run[0]["energy_joules"], drawn, rtol=1e-5)
    assert (source.columns(NOW)["energy_joules"] == energy).all()


def test_temperature_follows_power_with_a_lag() -> None:
    """A throttled card goes on cooling for a while: heat has a memory."""
    slow = (fault(FaultKind.POWER_BRAKE, at_seconds=60.0, until_seconds=None, gpu=None),)
    run = readings(SimulatedFleet(16, workloads=("t3",), idle_seconds=0.0, faults=slow), 200)
    heat = [np.mean([value(r, 1, gpu, "temperature_celsius") for gpu in range(8)]) for r in run]
    assert heat[59] - 2 > heat[63] > heat[199] + 2


def steady_sample(name: str, seconds: int) -> dict[str, Array]:
    """Signals of one workload at work, shape (seconds, GPUs)."""
    # Job after job without a pause; its short warm-ups are left out by taking jobs far longer than the sample.
    source = SimulatedFleet(2_000, workloads=(name,), job_seconds=1e7, idle_seconds=0.0).build()
    made = [source.columns(NOW + second) for second in range(seconds)]
    return {signal: np.stack([columns[signal] for columns in made]) for signal in parameters().signals}


@pytest.mark.parametrize("name", sorted(parameters().workloads))
def test_marginal_levels_stay_near_the_fitted_ones(name: str) -> None:
    """Median and quartiles of every signal are those of the recording, within a twentieth of its range."""
    regime = parameters().workloads[name][2]
    sample = steady_sample(name, 8)
    positions = [4, 6, 8]  # at -1, 0 and +1 standard deviations
    levels = [0.158655, 0.5, 0.841345]
    for signal, quantiles in zip(parameters().signals, regime.quantiles, strict=True):
        found = np.quantile(sample[signal], levels)
        scale = max(float(quantiles[-1] - quantiles[0]), 1e-12)
        # A signal that the device gives as whole numbers is rounded.
        np.testing.assert_allclose(found, quantiles[positions], atol=0.05 * scale + 0.5 * (scale > 10), err_msg=signal)


def test_power_wanders_as_slowly_as_it_was_fitted() -> None:
    """The autocorrelation at one second is what the model's parts give together."""
    name = "t2"
    regime = parameters().workloads[name][2]
    power = steady_sample(name, 60)["power_watts"]
    centred = power - power.mean(axis=0)
    found = (centred[1:] * centred[:-1]).mean() / (centred**2).mean()
    node, _, own = regime.weights[:, 0] ** 2
    expected = (node * regime.node.phi[0] + own * regime.own.phi[0]) / (node + own)
    assert abs(found - expected) < 0.1


def test_gpus_of_a_node_move_together_and_those_of_two_nodes_do_not() -> None:
    """What the node shares is shared by its GPUs alone."""
    power = steady_sample("t2", 60)["power_watts"]
    scaled = (power - power.mean(axis=0)) / power.std(axis=0)
    neighbours = (scaled[:, 0::8] * scaled[:, 1::8]).mean()
    strangers = (scaled[:, 0:-8:8] * scaled[:, 8::8]).mean()
    assert neighbours > 0.6
    assert abs(strangers) < 0.1


def test_power_and_tensor_activity_are_correlated_as_they_were() -> None:
    """Who works draws power: in the recording of t2 the two go together."""
    sample = steady_sample("t2", 20)
    power, tensor = (sample[name] - sample[name].mean(axis=0) for name in ("power_watts", "tensor_active_ratio"))
    assert (power * tensor).mean() / (power.std() * tensor.std()) > 0.3


def test_jobs_idle_warm_up_and_work_each_at_its_own_time() -> None:
    """Nodes of one job are in the same phase; a fleet shows all phases at once."""
    fleet = SimulatedFleet(8 * 512, nodes_per_job=4, workloads=("t3",), job_seconds=120.0, idle_seconds=60.0)
    memory = fleet.build().columns(NOW)["memory_used_mib"].reshape(-1, 32)
    empty = memory.max(axis=1) < 2_000
    full = memory.min(axis=1) > 60_000
    assert 0.1 < empty.mean() < 0.4
    assert 0.3 < full.mean() < 0.8


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(FaultKind.THERMAL_THROTTLE, SW_THERMAL | HW_THERMAL), (FaultKind.POWER_BRAKE, POWER_BRAKE)],
    ids=["thermal", "power brake"],
)
def test_a_throttled_gpu_shows_the_bits_and_draws_less_while_it_lasts(kind: FaultKind, bits: int) -> None:
    """The bits of NVML are set for the fault's time and GPU, and for no other."""
    # t13_node0 never reaches its power cap, so that it sets no bit of its own.
    run = readings(SimulatedFleet(16, workloads=("t13_node0",), faults=(fault(kind),)), 12)
    reasons = [int(value(r, 1, 1, "clocks_event_reasons")) & bits for r in run]
    assert [bool(found) for found in reasons] == [5 <= second < 10 for second in range(12)]
    assert set(reasons) == {0, bits}
    assert all(int(value(r, 1, 2, "clocks_event_reasons")) & bits == 0 for r in run)
    assert value(run[5], 1, 1, "power_watts") < 0.75 * value(run[4], 1, 1, "power_watts")


def test_a_thermally_throttled_gpu_is_hot() -> None:
    """It throttles because of its heat."""
    run = readings(SimulatedFleet(16, faults=(fault(FaultKind.THERMAL_THROTTLE),)), 6)
    assert value(run[5], 1, 1, "temperature_celsius") >= 87.0
    assert value(run[4], 1, 1, "temperature_celsius") < 87.0


def test_a_lost_gpu_has_no_rows_while_it_lasts_and_an_xid_when_it_begins() -> None:
    """XID 79 comes once; the other GPUs keep coming."""
    run = readings(SimulatedFleet(24, faults=(fault(FaultKind.GPU_LOST),)), 12)
    for second, reading in enumerate(run):
        expected = [gpu for gpu in range(8) if gpu != 1 or not 5 <= second < 10]
        assert gpus_of(reading, "sim-0002") == expected
        assert gpus_of(reading, "sim-0001") == list(range(8))
        assert told(reading) == ([(EventKind.XID, "sim-0002", 1, 79)] if second == 5 else [])


def test_an_xid_is_one_event_and_leaves_the_rows_alone() -> None:
    """An application's fault is told; the GPU goes on."""
    run = readings(SimulatedFleet(16, faults=(fault(FaultKind.XID, code=31),)), 12)
    assert [told(reading) for reading in run if told(reading)] == [[(EventKind.XID, "sim-0002", 1, 31)]]
    assert all(gpus_of(reading, "sim-0002") == list(range(8)) for reading in run)


def test_an_uncorrected_error_is_counted_for_ever_and_zero_before() -> None:
    """The counter goes from 0 to 1 on one GPU, stays there, and comes with XID 48."""
    run = readings(SimulatedFleet(16, faults=(fault(FaultKind.ECC_UNCORRECTED),)), 12)
    counts = [value(r, 1, 1, "ecc_uncorrected_volatile_count") for r in run]
    assert counts == [0.0] * 5 + [1.0] * 7
    assert {value(r, 0, 1, "ecc_uncorrected_volatile_count") for r in run} == {0.0}
    assert told(run[5]) == [(EventKind.XID, "sim-0002", 1, 48)]


def test_a_silent_node_says_nothing_at_all_and_the_others_go_on() -> None:
    """Neither rows nor events, not even of another fault on it; afterwards its frames continue their count."""
    faults = fault(FaultKind.NODE_SILENT), fault(FaultKind.XID, at_seconds=6.0, code=79)
    framer = Framer(None)
    seqs = []
    for second, reading in enumerate(readings(SimulatedFleet(16, faults=faults), 12)):
        assert reading.gpus is not None
        frame = merge(list(framer.gpu_frames(reading.gpus, NOW + second)))
        seqs.append([run.seq for run in frame.manifest if run.source == "sim-0002/gpu"])
        assert told(reading) == []
        assert gpus_of(reading, "sim-0001") == list(range(8))
    assert seqs == [[0], [1], [2], [3], [4], [], [], [], [], [], [5], [6]]


def test_a_hung_driver_gives_no_rows_and_tells_when_it_begins_and_ends() -> None:
    """The collector lives and says so: this is not silence."""
    run = readings(SimulatedFleet(16, faults=(fault(FaultKind.DRIVER_HUNG),)), 12)
    rows = [len(gpus_of(reading, "sim-0002")) for reading in run]
    assert rows == [8] * 5 + [0] * 5 + [8] * 2
    said = {second: reading.events[-1].detail["state"] for second, reading in enumerate(run) if told(reading)}
    assert said == {5: "hung", 10: "answers"}


def test_a_fault_shorter_than_a_tick_is_told_all_the_same() -> None:
    """What begins and ends between two readings has happened."""
    short = Fault(FaultKind.DRIVER_HUNG, 1.2, 1.8)
    run = readings(SimulatedFleet(8, faults=(short,)), 3)
    assert [event.detail["state"] for event in run[2].events] == ["hung", "answers"]


def test_a_fault_on_a_node_of_a_fleet_that_is_all_silent_leaves_no_rows() -> None:
    """No GPU is no rows, not rows of nothing."""
    assert readings(SimulatedFleet(4, faults=(Fault(FaultKind.NODE_SILENT, 0.0),)), 1)[0].gpus is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"at_seconds": -1.0}, "at_seconds"),
        ({"at_seconds": math.nan}, "at_seconds"),
        ({"until_seconds": 5.0}, "until_seconds"),
        ({"kind": FaultKind.XID}, "code"),
        ({"code": 79}, "code"),
        ({"kind": FaultKind.NODE_SILENT, "gpu": 1}, "gpu"),
    ],
    ids=[
        "before the start",
        "nan",
        "ends at once",
        "xid without a code",
        "code without an xid",
        "gpu of a node's fault",
    ],
)
def test_a_fault_that_means_nothing_is_refused_with_its_key(options: dict[str, Any], expected: str) -> None:
    """The message names what is wrong and what was expected."""
    with pytest.raises(InvalidFault, match=f"{expected} of the fault .*expected"):
        fault(**({"kind": FaultKind.GPU_LOST} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"gpus": 0},
        {"gpus": 10_000_000},
        {"gpus_per_node": 0},
        {"gpus_per_node": 65},
        {"workloads": ()},
        {"workloads": ("t99",)},
        {"seed": -1},
        {"job_seconds": 0.0},
        {"faults": (Fault(FaultKind.GPU_LOST, 0.0, node="sim-0003", gpu=0),)},
        {"faults": (Fault(FaultKind.GPU_LOST, 0.0, node="gpu-7", gpu=0),)},
        {"faults": (Fault(FaultKind.GPU_LOST, 0.0, node="sim-0002", gpu=4),)},
    ],
    ids=[
        "no gpus",
        "too many gpus",
        "nodes without gpus",
        "nodes with too many gpus",
        "no workload",
        "unknown workload",
        "negative seed",
        "jobs of no time",
        "a fault on no node",
        "a fault on a node of another name",
        "a fault on no gpu",
    ],
)
def test_a_fleet_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    """A mistake in a simulation is said at once, with what would be right."""
    with pytest.raises(InvalidSimulation, match="expected"):
        SimulatedFleet(**({"gpus": 12} | options))
