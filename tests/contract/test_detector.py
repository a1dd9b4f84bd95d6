"""What every detector promises, run by every one of them."""

import dataclasses
import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import DETECTORS, Detector, Holes, ReaderHealth, all_detectors, detector_config
from detectors.errors import UnknownDetector, WrongSetting
from detectors.memory import OpenFindings, trouble_of
from detectors.windows import SERIES_MAX
from telemetry_bus.findings import Finding
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.schemas import SCHEMAS, FindingState
from telemetry_bus.topics import TOPIC_SCHEMAS, Topic

NAN, INF = float("nan"), float("inf")
START = 1_700_000_000.0
CUTS = (1, 7, 64, 10_000)
TICK_ROWS = 40
Row = dict[str, Any]
by_name = pytest.mark.parametrize("name", sorted(DETECTORS))


def frame_of(schema: str, rows: Sequence[Row]) -> Frame:
    """One frame; what a row lacks is absent in it."""
    names = [name for name in SCHEMAS[schema].names if any(name in row for row in rows)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return FrameMaker("test").make(schema, columns, rows[-1]["time"])


def train_rows(seed: int, count: int = 480) -> list[Row]:
    """Rows of three jobs with two or three ranks, in which everything goes wrong that a run can do."""
    chance = random.Random(seed)
    rows: list[Row] = []
    step = dict.fromkeys("abc", 0)
    attempt = dict.fromkeys("abc", 1)
    for at in range(count):
        job = chance.choice("aaabc")
        if chance.random() < 0.6:
            step[job] += 1
        if chance.random() < 0.01:
            step[job] = max(0, step[job] - 30)
        if chance.random() < 0.003:
            attempt[job] += 1
        sick = chance.random() < (0.06 if at % 200 < 120 else 0.0)
        rows.append(
            {
                "time": START + at + chance.choice([0.0, 0.0, 0.2]) + (400.0 if at >= count // 2 else 0.0),
                "job": job,
                "attempt": f"attempt-{attempt[job]}",
                "rank": chance.choice([0, 0, 0, 0, 1, 2]),
                "step": step[job],
                "scope": chance.choice(["global"] * 4 + ["shard", None]),
                "microbatch": chance.choice([None, 0, 1]),
                "loss": chance.choice([NAN, INF, 90.0, None, 0.0]) if sick else 2.0 + chance.random() / 10,
                "grad_norm": chance.choice([NAN, INF, None, 0.0]) if chance.random() < 0.03 else 1.0,
                "nonfinite": chance.choice([None, 0, 0, 0, 12 if sick else 0]),
                "first_nonfinite": chance.choice([None, "blocks.1.w", ""]) if sick else None,
                "loss_scale": chance.choice([None, 1.0, 1024.0]),
                "skipped": chance.choice([None, False, sick]),
                "lr": chance.choice([0.001, 0.001, None, 0.1]),
                "phase": chance.choice([None, None, "train", "eval" if chance.random() < 0.02 else "train"]),
                "node": chance.choice(["n1", "n2"]),
                "world_size": chance.choice([None, 3]) if job == "b" else None,
            }
        )
    return rows


def gpu_rows(seed: int, count: int = 400) -> list[Row]:
    """Rows of three nodes that work, rest, and cannot be read."""
    chance = random.Random(seed)
    return [
        {
            "time": START + at,
            "node": chance.choice(["n1", "n2", "n3"]),
            "gpu": chance.randrange(2),
            "simulated": False,
            "gpu_utilization_percent": chance.choice([99.0, 97.0, 100.0, None, NAN, 0.0]),
        }
        for at in range(count)
    ]


def health(seed: int, now: float) -> ReaderHealth:
    """A reader that is sometimes late, behind sources that come and go."""
    chance = random.Random(f"{seed} {int(now) // 60}")
    sources = [f"node-{number}/gpu" for number in range(12)] + ["job/1/0/train"]
    return ReaderHealth(
        lag_seconds={Topic.TRAIN: chance.choice([0.0, 6.0, 40.0, NAN]), Topic.GPU: 0.0},
        last_seen={source: now - chance.choice([0.0, 0.0, 100.0]) for source in sources},
        holes={source: Holes(3, now - chance.choice([1.0, 90.0])) for source in sources[:4] if chance.random() < 0.5},
        lost=int(now - START) // 200,
        clock_offsets={source: chance.choice([80.0, -3e8]) for source in sources if chance.random() < 0.3},
        refused={"checksum": min(1, int(now - START) // 50), "too_short": 0},
        regions={region: now - chance.choice([0.0, 0.0, 100.0]) for region in ("eu-1", "us-2")},
        region_of={source: "eu-1" for source in sources[:10] if chance.random() < 0.9},
    )


def watch(detector: Detector, schema: str, rows: Sequence[Row], cut: int, seed: int = 0) -> list[Finding]:
    """Feed ``rows`` in frames of ``cut`` rows, with ticks at the same places however they are cut."""
    found: list[Finding] = []
    takes = any(schema in TOPIC_SCHEMAS[topic] for topic in detector.topics)
    for begin in range(0, len(rows), TICK_ROWS):
        part = rows[begin : begin + TICK_ROWS]
        for at in range(0, len(part), cut) if takes else ():
            found.extend(detector.observe(frame_of(schema, part[at : at + cut])))
        now = part[-1]["time"]
        following = rows[begin + TICK_ROWS]["time"] if begin + TICK_ROWS < len(rows) else now + 200.0
        while now < following:
            found.extend(detector.tick(now, health(seed, now)))
            now += 5.0
    return found


def everything(detector: Detector, seed: int, cut: int) -> list[Finding]:
    """What a detector says of the scene of its topic."""
    schema = "gpu/1" if Topic.GPU in detector.topics else "train/1"
    return watch(detector, schema, (gpu_rows if schema == "gpu/1" else train_rows)(seed), cut, seed)


def told(findings: Sequence[Finding]) -> list[str]:
    """Findings so that they can be compared: a NaN in the evidence is equal to a NaN."""
    return [repr(finding) for finding in findings]


@by_name
def test_it_is_registered_under_the_name_of_its_file(name: str) -> None:
    """File, registered name and metric label are one word."""
    detector = DETECTORS[name]().build()
    assert detector.name == name
    assert type(detector).__module__ == f"detectors.{name}" == importlib.import_module(f"detectors.{name}").__name__


@by_name
def test_its_configuration_is_frozen_and_compares(name: str) -> None:
    """State is never configured: settings are a value."""
    config: Any = DETECTORS[name]()
    assert config == DETECTORS[name]()
    assert hash(config) == hash(DETECTORS[name]())
    first = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, first, 1)


@by_name
def test_a_setting_that_cannot_be_is_refused_by_name(name: str) -> None:
    """A wrong setting names the detector, the setting, and what is allowed."""
    config: Any = DETECTORS[name]()
    setting = next(item.name for item in dataclasses.fields(config) if isinstance(item.default, int | float))
    with pytest.raises(WrongSetting, match=rf"{name}: .*{setting} is -1"):
        detector_config(name, **{setting: -1})


def test_an_unknown_detector_is_refused_with_the_known_ones() -> None:
    """The message says what there is."""
    with pytest.raises(UnknownDetector, match="nonfinite"):
        detector_config("astrology")


@by_name
def test_it_finds_something_in_the_scene_of_these_tests(name: str) -> None:
    """The scene of the tests below is not one in which nothing happens."""
    found = [finding for seed in range(6) for finding in everything(DETECTORS[name]().build(), seed, 64)]
    assert {finding.state for finding in found} == {FindingState.FIRING, FindingState.RESOLVED}


@by_name
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12)
def test_how_rows_are_cut_into_frames_does_not_matter(name: str, seed: int) -> None:
    """Frames of 1, 7, 64 rows or all give the same findings, ids included, in the same order."""
    whole = told(everything(DETECTORS[name]().build(), seed, CUTS[-1]))
    for cut in CUTS[:-1]:
        assert told(everything(DETECTORS[name]().build(), seed, cut)) == whole


@by_name
def test_the_same_frames_and_ticks_give_the_same_findings(name: str) -> None:
    """Two copies of a detector say the same under the same ids, and no id twice."""
    first, second = (everything(DETECTORS[name]().build(), 3, 7) for _ in range(2))
    assert told(first) == told(second)
    assert len({finding.id for finding in first}) == len(first)


@by_name
def test_what_it_says_can_be_read_by_somebody_who_was_woken(name: str) -> None:
    """Every finding has a title and numbers, is not from the future, and is resolved only after it fired."""
    found = [finding for seed in range(4) for finding in everything(DETECTORS[name]().build(), seed, 64)]
    for finding in found:
        assert finding.title
        assert finding.detector == name
        assert finding.evidence
        assert finding.onset_time is not None
        assert finding.onset_time <= finding.time


HOSTILE: dict[str, list[Any]] = {
    "time": [-6e10, 0.0, START, 2.5e11],
    "job": ["", "j", "\x00", "x" * 5_000],
    "attempt": ["", "a", "\u2028"],
    "rank": [-(2**31), -1, 0, 2**31 - 1],
    "step": [-(2**63), -1, 0, 1, 2**63 - 1],
    "world_size": [None, -(2**31), 0, 1, 2**31 - 1],
    "microbatch": [None, -(2**31), 0, 2**31 - 1],
    "scope": [None, "", "global", "shard", "galaxy"],
    "phase": [None, "", "eval", "party"],
    "loss": [None, 0.0, -0.0, NAN, INF, -INF, 1e308, -1e308, 5e-324, 2.0],
    "grad_norm": [None, 0.0, NAN, INF, -INF, -1.0, 1e308],
    "nonfinite": [None, -(2**63), 0, 2**63 - 1],
    "first_nonfinite": [None, "", "w"],
    "loss_scale": [None, 0.0, NAN, INF, -INF, 1.0],
    "skipped": [None, True, False],
    "lr": [None, 0.0, NAN, INF, -INF, -1.0],
    "node": [None, "", "n"],
    "gpu": [-(2**31), 0],
    "simulated": [True, False],
    "gpu_utilization_percent": [None, NAN, INF, -INF, -5.0, 0.0, 3e38, 99.0],
    "kind": ["job_end", "checkpoint_begin", "checkpoint_end", "", "nonsense"],
}


@by_name
@given(data=st.data())
@settings(max_examples=30)
def test_hostile_values_never_raise(name: str, data: st.DataObject) -> None:
    """What a frame may hold has an answer, however absurd: huge and negative steps, infinite rates, empty names."""
    detector = DETECTORS[name]().build()
    schemas = sorted(schema for topic in detector.topics for schema in TOPIC_SCHEMAS[topic])
    for schema in schemas:
        wanted = [column for column in SCHEMAS[schema].names if column in HOSTILE]
        row = st.fixed_dictionaries({column: st.sampled_from(HOSTILE[column]) for column in wanted})
        rows = data.draw(st.lists(row, min_size=1, max_size=40))
        for finding in detector.observe(frame_of(schema, rows)):
            assert finding.title
    for now in (START, 0.0, 2.5e11):
        detector.tick(now, health(0, START))


def probe(name: str, schema: str, rows: Callable[[Any], Iterator[Row]], value: Any) -> list[Finding]:
    """What a fresh detector says of rows with this value."""
    detector = DETECTORS[name]().build()
    return [finding for row in rows(value) for finding in detector.observe(frame_of(schema, [row]))]


def run_row(step: int, **values: Any) -> Row:
    """One row of one job."""
    return {"time": START + step, "job": "j", "attempt": "a", "rank": 0, "step": step, **values}


def norm_then_nan_loss(value: Any) -> Iterator[Row]:
    """A gradient norm, then a loss that is NaN."""
    yield run_row(1, loss=2.0, grad_norm=value)
    yield run_row(2, loss=NAN)


def level_then_two(value: Any) -> Iterator[Row]:
    """Sixty rows of one loss, then ten of two."""
    yield from (run_row(step, loss=value, grad_norm=1.0) for step in range(60))
    yield from (run_row(step, loss=2.0, grad_norm=1.0) for step in range(60, 70))


def test_an_absent_a_zero_and_a_nan_gradient_norm_are_three_answers() -> None:
    """Absent is not known, zero is a measurement, and NaN is the trouble itself."""
    absent, zero, nan = (probe("nonfinite", "train/1", norm_then_nan_loss, value) for value in (None, 0.0, NAN))
    assert [finding.step for finding in absent] == [2]
    assert absent[0].evidence["last_finite_grad_norm"] is None
    assert [finding.step for finding in zero] == [2]
    assert zero[0].evidence["last_finite_grad_norm"] == 0.0
    assert [finding.step for finding in nan] == [1]


def test_an_absent_a_zero_and_a_nan_loss_are_three_answers() -> None:
    """Sixty losses of zero are a level from which two is a spike; absent ones are no level; NaN is the other
    detector's."""
    answers = {
        value: {
            name: len(probe(name, "train/1", level_then_two, float(value) if value != "absent" else None))
            for name in both
        }
        for both in [("loss_spike", "nonfinite")]
        for value in ("absent", "0.0", "nan")
    }
    assert answers["absent"] == {"loss_spike": 0, "nonfinite": 0}
    assert answers["0.0"]["loss_spike"] > 0
    assert answers["0.0"]["nonfinite"] == 0
    assert answers["nan"]["loss_spike"] == 0
    assert answers["nan"]["nonfinite"] > 0


@pytest.mark.parametrize(("percent", "finds"), [(None, False), (0.0, False), (NAN, False), (99.0, True)])
def test_only_a_utilisation_that_was_read_counts_as_work(percent: float | None, finds: bool) -> None:
    """A GPU that could not be read is not known to work."""
    detector = DETECTORS["busy_without_rows"]().build()
    found: list[Finding] = []
    for second in range(200):
        row = {"time": START + second, "node": "n", "gpu": 0, "simulated": False, "gpu_utilization_percent": percent}
        found.extend(detector.observe(frame_of("gpu/1", [row])))
        found.extend(detector.tick(START + second, ReaderHealth()))
    assert bool(found) is finds


@pytest.mark.parametrize("name", ["nonfinite", "loss_spike", "stall"])
def test_its_state_is_bounded_and_is_freed_in_silence(name: str) -> None:
    """More jobs than there is room for push the oldest out, and six silent hours free the rest."""
    detector: Any = DETECTORS[name]().build()
    for begin in range(0, SERIES_MAX + 9_000, 3_000):
        rows = [{**run_row(1, loss=2.0), "job": f"j{begin + at}", "time": START + begin} for at in range(3_000)]
        detector.observe(frame_of("train/1", rows))
        assert len(detector.series) <= SERIES_MAX
    assert detector.series.forgotten > 0
    detector.tick(START + 40_000 + 6 * 3600, ReaderHealth())
    assert len(detector.series) == 0


class Life:
    """One life of a reader: its detector has seen nothing of what was before ``begin``."""

    def __init__(self, name: str, begin: int) -> None:
        self.detector = DETECTORS[name]().build()
        self._begin, self._refused = START + begin, 0
        self._seen: dict[str, float] = {}

    def second(self, name: str, at: int, *, bad: bool) -> list[Finding]:
        """A second in which the trouble of this detector goes on (``bad``) or everything is well."""
        now, found = START + at, list[Finding]()
        sources = [f"node-{number}/gpu" for number in range(12)] if name == "silent_source" else ["node-1/gpu"]
        if not (bad and name in ("silent_source", "missing_frames")):
            self._seen |= dict.fromkeys(sources, now)
        self._refused += bad
        values = {"loss": 90.0 if bad and name == "loss_spike" else 2.0 + at % 7 / 100, "node": "node-1"}
        row = run_row(at, **values, grad_norm=NAN if bad and name == "nonfinite" else 1.0)
        if Topic.TRAIN in self.detector.topics and not (bad and name in ("stall", "busy_without_rows")):
            found.extend(self.detector.observe(frame_of("train/1", [row])))
        if Topic.GPU in self.detector.topics:
            gpu = {"time": now, "node": "node-1", "gpu": 0, "simulated": False, "gpu_utilization_percent": 99.0}
            found.extend(self.detector.observe(frame_of("gpu/1", [gpu])))
        health = ReaderHealth(
            lag_seconds={Topic.TRAIN: 40.0 if bad else 0.0},
            last_seen=dict(self._seen),
            holes={"node-1/gpu": Holes(3, now - 60.0)} if bad and at < 700 else {},
            clock_offsets={"node-1/gpu": 80.0} if bad else {},
            refused={"checksum": self._refused},
            regions={"eu-1": now - 100.0 if bad and name == "silent_region" else now},
            watching_since=self._begin,
        )
        return found + list(self.detector.tick(now, health))


@by_name
def test_a_restart_in_the_middle_of_trouble_changes_nothing_of_what_is_said(name: str) -> None:
    """A new copy that has read nothing back, and is handed what is open, says nothing again and says the end."""
    said: dict[bool, list[Finding]] = {}
    for restarts in (False, True):
        life, found = Life(name, 0), list[Finding]()
        for at in range(1_200 + 25_000 * (name == "missing_frames")):
            if restarts and at == 700:
                still, life = OpenFindings(), Life(name, at)
                still.take(found)
                for finding in still.of(name, START + at):
                    life.detector.remember(finding, START + at)
            found += life.second(name, at, bad=200 <= at < 800)
        said[restarts] = found
    undisturbed, restarted = ([(trouble_of(item), item.state, item.severity) for item in said[how]] for how in said)
    assert restarted == undisturbed
    assert [state for _trouble, state, _severity in restarted][-1] is FindingState.RESOLVED
    assert len({trouble for trouble, _state, _severity in restarted}) == 1
    assert said[True][-1].id not in {finding.id for finding in said[True][:-1]}


def test_the_table_is_what_is_built_by_default() -> None:
    """Every detector of the table is on by default, once."""
    assert sorted(config.build().name for config in all_detectors({})) == sorted(DETECTORS)
