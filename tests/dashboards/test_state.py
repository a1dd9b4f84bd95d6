"""The state behind the page: arrays by slot, curves that stay bounded, and nothing kept of what is gone."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import curves, fleet, heat, heat_channels, jobs, views
from dashboards.gpu_users import GpuUsersState
from telemetry_bus.frames import Frame, FrameMaker

NOW = 1_700_000_000.0
NAN = float("nan")


def gpus(nodes: int, per_node: int, time: float = NOW, **columns: Any) -> Frame:
    """One reading of every GPU of ``node-0``, ``node-1``, ..."""
    rows = nodes * per_node
    named = {
        "time": [time] * rows,
        "node": [f"node-{row // per_node}" for row in range(rows)],
        "gpu": [row % per_node for row in range(rows)],
        "simulated": [False] * rows,
    }
    return FrameMaker("node").make("gpu/1", named | columns, time)


def steps(time: float = NOW, job: str = "run", attempt: str = "a", **columns: Any) -> Frame:
    """Rows of one attempt."""
    rows = len(next(iter(columns.values())))
    named = {"time": [time] * rows, "job": [job] * rows, "attempt": [attempt] * rows, "rank": [0] * rows}
    return FrameMaker("sdk").make("train/1", named | {"step": list(range(rows))} | columns, time)


def cells(sent: dict[str, Any]) -> list[int]:
    """The codes of a heatmap."""
    codes: list[int] = np.frombuffer(base64.b64decode(sent["codes"]), "<u2" if sent["bits"] == 16 else "u1").tolist()
    return codes


def shown(state: fleet.FleetState, channel: str, now: float = NOW) -> dict[str, Any]:
    """The whole heatmap of a fleet."""
    return heat_channels.HeatChannels().whole(state, now, channel)


def test_absent_zero_and_nan_are_three_codes() -> None:
    """A cell without a value, with a zero, and with a NaN differ on the wire."""
    state = fleet.FleetState()
    state.observe(gpus(1, 4, gpu_utilization_percent=[None, 0.0, NAN, 100.0]))
    sent = shown(state, "gpu_utilization_percent:worst")
    assert cells(sent) == [heat.FINE.missing, 0, heat.FINE.nan, heat.FINE.top]
    assert set(cells(shown(state, "gpu_utilization_percent:worst", NOW + 60))) == {heat.FINE.stale}


def test_a_reading_that_turns_absent_is_not_shown_as_the_old_one() -> None:
    """The newest row speaks for all of its columns: null now means not read now."""
    state = fleet.FleetState()
    state.observe(gpus(1, 1, power_watts=[300.0]))
    state.observe(gpus(1, 1, time=NOW + 1, gpu_utilization_percent=[5.0]))
    (row,) = views.fleet_rows(state, GpuUsersState(), NOW, None, 10)
    assert row["power_watts"] is None
    assert row["gpu_utilization_percent"] == 5.0


def test_an_older_row_does_not_replace_a_newer_one() -> None:
    """A backlog that comes late leaves the present alone."""
    state = fleet.FleetState()
    state.observe(gpus(1, 1, time=NOW, power_watts=[300.0]))
    state.observe(gpus(1, 1, time=NOW - 60, power_watts=[1.0]))
    assert views.fleet_rows(state, GpuUsersState(), NOW, None, 10)[0]["power_watts"] == 300.0


def test_nodes_are_sorted_as_people_count() -> None:
    """node-2 stands before node-10, whatever the order in which they came."""
    state = fleet.FleetState()
    for name in ("node-10", "node-2", "a"):
        state.observe(gpus(1, 1, node=[name], power_watts=[1.0]))
    assert heat.Layout.of(state).event(state)["nodes"] == ["a", "node-2", "node-10"]


def test_a_silent_gpu_is_stale_and_then_forgotten_with_its_node() -> None:
    """Silence is shown after ten seconds, and its state is freed after a quarter of an hour."""
    state = fleet.FleetState()
    state.observe(gpus(3, 8, power_watts=[1.0] * 24))
    state.observe(gpus(1, 8, time=NOW + fleet.FORGET_SECONDS, power_watts=[2.0] * 8))
    now = NOW + fleet.FORGET_SECONDS + 1
    assert views.fleet_now(state, now)["stale"] == 16
    state.forget(now)
    assert (state.count, state.nodes) == (8, ["node-0"])
    state.observe(gpus(2, 8, time=now, power_watts=[3.0] * 16))
    assert [row["power_watts"] for row in views.fleet_rows(state, GpuUsersState(), now, None, 99)] == [3.0] * 16


def test_a_large_fleet_is_shown_by_node_with_its_worst_and_its_mean() -> None:
    """Beyond 4,096 GPUs a cell is a node; absent values take no part, and a node without any is missing."""
    nodes = heat.CELLS_MAX // 8 + 1
    degrees: list[float | None] = [50.0] * (nodes * 8)
    degrees[3], degrees[4] = 95.0, None
    degrees[8:16] = [None] * 8
    state = fleet.FleetState()
    state.observe(gpus(nodes, 8, temperature_celsius=degrees))
    layout = heat.Layout.of(state).event(state)
    assert (layout["cells"], len(layout["nodes"])) == ("nodes", nodes)
    worst, mean = (shown(state, f"temperature_celsius:{fold}") for fold in heat.FOLDS)
    assert (worst["from"], worst["to"], worst["bits"]) == (20.0, 95.0, 8)
    assert cells(worst)[:3] == [heat.COARSE.top, heat.COARSE.missing, 100]
    assert cells(mean)[0] == round(((50.0 * 6 + 95.0) / 7 - 20.0) / 75.0 * heat.COARSE.top)


def large_fleet() -> tuple[fleet.FleetState, int]:
    """A fleet whose cells are nodes, and how many there are."""
    nodes = heat.CELLS_MAX // 8 + 1
    state = fleet.FleetState()
    state.observe(gpus(nodes, 8, power_watts=[500.0] * (nodes * 8)))
    return state, nodes


def test_only_cells_that_have_changed_are_sent_and_they_make_the_same_picture() -> None:
    """Putting the changes over what was sent before gives what a newcomer is sent."""
    channel, (state, nodes) = "power_watts:worst", large_fleet()
    channels = heat_channels.HeatChannels()
    picture = cells(channels.whole(state, NOW, channel))
    state.observe(gpus(1, 8, time=NOW + 1, power_watts=[100.0] * 8))
    ((_, sent),) = channels.changes(state, NOW + 1, [channel])
    changed = np.unpackbits(np.frombuffer(base64.b64decode(sent["changed"]), np.uint8), bitorder="little")
    assert np.flatnonzero(changed).tolist() == [0]
    picture[0] = cells(sent)[0]
    assert picture == cells(channels.whole(state, NOW + 1, channel))
    assert len(str(sent)) < nodes


def test_a_channel_that_nobody_looks_at_any_more_is_forgotten() -> None:
    """Nothing is computed for nobody, and who comes back is sent the present."""
    channel, (state, _) = "power_watts:worst", large_fleet()
    channels = heat_channels.HeatChannels()
    channels.whole(state, NOW, channel)
    assert list(channels.changes(state, NOW + 1, [])) == []
    state.observe(gpus(1, 8, time=NOW + 2, power_watts=[100.0] * 8))
    assert cells(channels.whole(state, NOW + 2, channel))[0] == 25


def test_a_large_fleet_that_grows_is_laid_out_every_ten_seconds() -> None:
    """Nodes that come second by second do not send the names of all others each time; cells keep their places."""
    state, nodes = large_fleet()
    channels = heat_channels.HeatChannels()
    first = channels.lay_out(state, NOW)
    state.observe(gpus(1, 8, time=NOW + 1, node=["new"] * 8, power_watts=[1.0] * 8))
    assert channels.lay_out(state, NOW + 1) is first
    assert len(cells(channels.whole(state, NOW + 1, "power_watts:worst"))) == nodes
    assert len(channels.lay_out(state, NOW + 10).starts) == nodes + 1


def test_a_layout_whose_slots_are_given_to_others_is_made_anew_at_once() -> None:
    """After GPUs are forgotten a cell would show another GPU's numbers."""
    state, nodes = large_fleet()
    channels = heat_channels.HeatChannels()
    channels.lay_out(state, NOW + fleet.FORGET_SECONDS)
    state.observe(gpus(nodes - 1, 8, time=NOW + fleet.FORGET_SECONDS, power_watts=[1.0] * (nodes * 8 - 8)))
    state.forget(NOW + fleet.FORGET_SECONDS + 1)
    assert len(channels.lay_out(state, NOW + fleet.FORGET_SECONDS + 1).starts) == nodes - 1


@pytest.mark.parametrize(
    ("value", "span"),
    [(50.0, (0.0, 100.0)), (101.0, (0.0, 110.0)), (-5.0, (-10.0, 100.0)), (1e30, (0.0, 400.0)), (NAN, (0.0, 100.0))],
)
def test_the_span_of_the_codes_has_room_for_what_is_unusual_within_a_bound(
    value: float, span: tuple[float, float]
) -> None:
    """A GPU that burns is shown with its number; one absurd reading does not make all others alike."""
    assert heat.widened((0.0, 100.0), (0.0, 100.0), np.array([10.0, value])) == pytest.approx(span)


def test_the_gpus_of_a_region_are_counted_and_so_are_those_that_report() -> None:
    """A region that is cut off keeps its GPUs, and none of them reports."""
    state = fleet.FleetState()
    state.observe(gpus(1, 8, region=["eu-1"] * 8, power_watts=[1.0] * 8))
    state.observe(gpus(1, 4, time=NOW + 30, node=["us"] * 4, region=["us-2"] * 4, power_watts=[1.0] * 4))
    state.observe(gpus(1, 2, time=NOW + 30, node=["x"] * 2, power_watts=[1.0] * 2))
    lines = views.region_lines(state, {"eu-1": NOW, "us-2": NOW + 30}, NOW + 30)
    assert [(line["region"], line["gpus"], line["reporting"], line["cut_off_since"]) for line in lines] == [
        ("eu-1", 8, 0, NOW),
        ("us-2", 4, 4, None),
    ]


def test_rows_beyond_the_limits_are_counted_and_the_others_shown() -> None:
    """GPUs over the fleet's limit, odd GPU numbers and MIG instances are left out, and said."""
    state = fleet.FleetState(gpus_max=2)
    state.observe(gpus(1, 4, gpu=[0, 1, 2, -1], power_watts=[1.0] * 4))
    state.observe(gpus(1, 2, instance=["1", None], power_watts=[9.0, 2.0]))
    assert (state.count, state.rows_over_limit, state.instance_rows) == (2, 2, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([None, 0.0, 1.5, NAN])), max_size=200))
def test_a_curve_is_what_a_dictionary_would_be(points: list[tuple[int, float | None]]) -> None:
    """Whatever the order of steps, the curve holds the newest value of each, sorted by step."""
    curve, expected = curves.Curve(points_max=64), dict[int, float | None]()
    for step, value in points:
        curve.put(step, NOW, (value, None))
        expected[step] = value if value is not None else expected.get(step)
    found = views.curve_points(curve, np.arange(curve.count))
    assert found["step"] == sorted(expected)
    assert str(found["loss"]) == str([expected[step] for step in sorted(expected)])


def test_a_curve_stays_bounded_and_never_loses_a_nan_or_a_spike() -> None:
    """Thinning drops what is dull, evenly: after 100,000 steps the NaN and the spike are still there."""
    curve = curves.Curve(points_max=256)
    for step in range(100_000):
        loss = NAN if step == 777 else 50.0 if step == 1_234 else 1.0
        curve.put(step, NOW, (loss, 0.5))
    found = views.curve_points(curve, np.arange(curve.count))
    assert curve.count <= 256
    assert curve.thinned == 100_000 - curve.count
    assert {777, 1_234, 99_999} <= set(found["step"])
    assert max(np.diff(found["step"])) <= 2 * 4_096, "a stretch of its history is gone"


def test_the_curve_follows_the_lowest_rank_and_global_numbers_before_a_shards() -> None:
    """Of many ranks' rows of a step one makes the curve: global scope first, then the lowest rank."""
    state = jobs.JobsState()
    columns: dict[str, Any] = {"rank": [5, 3, 4], "step": [1, 1, 1], "loss": [5.0, 3.0, 4.0], "scope": ["shard"] * 3}
    state.observe(steps(**columns))
    assert state.jobs["run"].newest.curve.last(0) == 3.0
    state.observe(steps(**columns | {"step": [2, 2, 2], "scope": ["global", "shard", "shard"]}))
    assert state.jobs["run"].newest.curve.last(0) == 5.0
    assert state.jobs["run"].newest.ranks_seen == 3


def test_the_first_bad_row_of_any_rank_is_kept() -> None:
    """A rank whose curve is not shown still marks its job: step, rank, what, and the parameter."""
    state = jobs.JobsState()
    state.observe(steps(rank=[0, 9], step=[4, 4], grad_norm=[1.0, NAN], nonfinite=[0, 7], first_nonfinite=[None, "w"]))
    (mark,) = state.jobs["run"].newest.marks
    assert (mark.step, mark.rank, mark.what, mark.parameter) == (4, 9, ("grad_norm", "gradient"), "w")


def test_a_restart_is_an_attempt_of_its_own() -> None:
    """Steps that begin again in a new attempt do not mix with the old curve, and old attempts are bounded."""
    state = jobs.JobsState()
    for number in range(10):
        state.observe(steps(time=NOW + number, attempt=f"a{number}", loss=[float(number)]))
    job = state.jobs["run"]
    assert (job.attempts_seen, len(job.attempts), job.newest.name) == (10, jobs.ATTEMPTS_MAX, "a9")
    assert job.newest.curve.count == 1


def test_the_longest_silent_job_makes_room_and_silent_jobs_are_freed() -> None:
    """The number of jobs is bounded, what goes is counted, and after six hours of silence a job is gone."""
    state = jobs.JobsState(jobs_max=3)
    for number in range(5):
        state.observe(steps(time=NOW + number, job=f"run-{number}", loss=[1.0]))
    assert sorted(state.jobs) == ["run-2", "run-3", "run-4"]
    assert state.jobs_dropped == 2
    state.forget(NOW + 3 + jobs.FORGET_SECONDS)
    assert sorted(state.jobs) == ["run-4"]


@pytest.mark.parametrize(("age", "state"), [(0.0, "running"), (59.0, "running"), (61.0, "silent"), (600.0, "silent")])
def test_a_job_whose_rows_have_stopped_is_silent_and_has_no_rate(age: float, state: str) -> None:
    """A killed job is not called running for long, and its last speed is not shown as its speed."""
    known = jobs.JobsState()
    for second in range(3):
        known.observe(steps(time=NOW + second, step=[second], loss=[1.0], tokens=[10]))
    line = views.job_summary(known.jobs["run"], NOW + 2.0 + age)
    assert line["state"] == state
    assert (line["steps_per_second"], line["tokens_per_second"]) == ((1.0, 10.0) if age == 0.0 else (None, None))


def test_a_job_that_has_ended_has_no_rate() -> None:
    """Its last speed is history."""
    known = jobs.JobsState()
    for second in range(3):
        known.observe(steps(time=NOW + second, step=[second], loss=[1.0], tokens=[10]))
    known.jobs["run"].newest.ended = True
    line = views.job_summary(known.jobs["run"], NOW + 2.0)
    assert (line["state"], line["steps_per_second"], line["tokens_per_second"]) == ("ended", None, None)


def test_the_step_rate_is_not_known_from_one_step() -> None:
    """A rate needs two steps at two times; until then it is absent, not zero."""
    state = jobs.JobsState()
    state.observe(steps(time=NOW, step=[10], loss=[1.0]))
    assert views.job_summary(state.jobs["run"], NOW)["steps_per_second"] is None
    state.observe(steps(time=NOW + 2, step=[14], loss=[1.0]))
    assert views.job_summary(state.jobs["run"], NOW + 2)["steps_per_second"] == 2.0
