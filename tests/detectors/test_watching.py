"""Nantucket watches itself: each of these lives on ticks and what the reader knows."""

from dataclasses import replace

import pytest

from detectors import (
    BusyWithoutRows,
    ClockOffset,
    Holes,
    Lag,
    MissingFrames,
    ReaderHealth,
    RefusedFrames,
    SilentRegion,
    SilentSource,
)
from detectors.latch import Group, Latch
from detectors.watching import NAMES_SAID, group_of, place_of
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import FindingState, Severity
from telemetry_bus.topics import Topic
from tests.detectors.rows import NAN, START, frame, ticks


def test_a_collector_that_falls_silent_is_named_with_its_node() -> None:
    """After fifteen seconds, once; and it is over with its next frame."""
    detector = SilentSource().build()
    health = ReaderHealth(last_seen={"n1/gpu": START, "n2/gpu": START + 100, "job/1/0/train": START})
    (found,) = ticks(detector, 1, 60, health)
    assert (found.node, found.title, found.time) == ("n1", "n1/gpu has sent nothing for 16 s", START + 16)
    (over,) = ticks(detector, 61, 61, replace(health, last_seen={"n1/gpu": START + 61, "n2/gpu": START + 61}))
    assert over.state is FindingState.RESOLVED


def test_a_rack_that_falls_silent_at_once_is_one_finding() -> None:
    """Forty nodes behind one switch are one trouble."""
    health = ReaderHealth(last_seen={f"n{number}/gpu": START for number in range(40)})
    (found,) = ticks(SilentSource().build(), 0, 60, health)
    assert found.evidence["count"] == 40
    assert found.node is None


def region(count: int, seen: float, name: str = "eu-1") -> ReaderHealth:
    """A region with so many collectors that were all last seen at one time, beside one that sends."""
    sources = [f"{name}-{number}/gpu" for number in range(count)]
    return ReaderHealth(
        last_seen=dict.fromkeys(sources, seen),
        regions={name: seen, "us-2": START + 100_000.0},
        region_of=dict.fromkeys(sources, name),
    )


@pytest.mark.parametrize(("count", "severity"), [(8, Severity.WARNING), (9, Severity.CRITICAL)])
def test_a_region_that_is_cut_off_is_one_finding_with_the_time_of_its_last_frame(
    count: int, severity: Severity
) -> None:
    """A fleet's region pages, a workstation's is a ticket; it is over with its next frame."""
    detector = SilentRegion().build()
    (found,) = ticks(detector, 1, 60, region(count, START))
    assert (found.region, found.severity, found.time) == ("eu-1", severity, START + 16)
    assert found.title == "region eu-1 is cut off: no frame since 2023-11-14T22:13:20Z"
    assert (found.evidence["last_frame"], found.evidence["sources"]) == (START, count)
    (over,) = ticks(detector, 61, 61, region(count, START + 61))
    assert (over.state, over.severity, over.region) == (FindingState.RESOLVED, severity, "eu-1")


def test_the_sources_of_a_region_that_is_cut_off_are_not_said_one_by_one() -> None:
    """One cause, one page; and a source that stays silent when its region is back is said then."""
    detector = SilentSource().build()
    health = replace(region(20, START), regions={"eu-1": START + 3.0})  # their last frames were not all at once
    assert ticks(detector, 1, 60, health) == []
    (found,) = ticks(detector, 61, 90, replace(health, last_seen={"eu-1-3/gpu": START}, regions={"eu-1": START + 90}))
    assert found.node == "eu-1-3"


def test_a_source_that_was_silent_before_its_region_stays_said() -> None:
    """The silence of its region is no end of its own."""
    detector = SilentSource().build()
    alone = replace(region(1, START), regions={"eu-1": START + 20.0})
    assert len(ticks(detector, 1, 20, alone)) == 1
    assert ticks(detector, 21, 60, alone) == []


def test_a_region_that_is_silent_for_hours_is_no_longer_expected() -> None:
    """Its sources are forgotten then, and so is the trouble."""
    detector = SilentRegion().build()
    assert len(ticks(detector, 16, 20, region(9, START))) == 1
    (over,) = ticks(detector, 6 * 3600, 6 * 3600, region(9, START))
    assert over.title == "eu-1 is no longer expected: it was silent for hours and is forgotten"


def test_silence_while_nobody_watched_is_not_said() -> None:
    """After a gap in the ticks, sources have the whole limit again."""
    health = ReaderHealth(last_seen={"n1/gpu": START}, watching_since=START + 100)
    assert ticks(SilentSource().build(), 100, 114, health) == []
    assert len(ticks(SilentSource().build(), 115, 117, health)) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, []), (NAN, []), (6.0, [Severity.WARNING]), (31.0, [Severity.CRITICAL])],
)
def test_lag_that_lasts_is_said(seconds: float, said: list[Severity]) -> None:
    """Five seconds are a ticket, thirty are a page."""
    found = ticks(Lag().build(), 0, 20, ReaderHealth(lag_seconds={Topic.TRAIN: seconds}))
    assert [item.severity for item in found] == said


def test_a_lag_of_a_moment_is_not_said() -> None:
    """A burst is read in a few seconds."""
    detector = Lag().build()
    late, well = ReaderHealth(lag_seconds={Topic.GPU: 50.0}), ReaderHealth(lag_seconds={Topic.GPU: 0.1})
    assert ticks(detector, 0, 8, late) + ticks(detector, 9, 9, well) + ticks(detector, 10, 18, late) == []


def test_frames_that_are_missed_for_long_are_said_and_come_back() -> None:
    """A gap of a moment is the network's; one of half a minute is somebody's."""
    detector = MissingFrames().build()
    gap = ReaderHealth(holes={"n1/gpu": Holes(3, START)})
    (found,) = ticks(detector, 0, 40, gap)
    assert (found.time, found.evidence["outstanding"], found.node) == (START + 30, 3, "n1")
    assert [item.state for item in ticks(detector, 41, 41)] == [FindingState.RESOLVED]


def test_frames_that_are_lost_are_said_with_their_number() -> None:
    """Loss is measured, and final."""
    detector = MissingFrames().build()
    ticks(detector, 0, 3, ReaderHealth(lost=0))
    (found,) = ticks(detector, 4, 9, ReaderHealth(lost=7))
    assert found.evidence["lost"] == 7


def test_a_clock_ten_years_off_is_said_with_its_offset() -> None:
    """Its rows are used all the same; somebody has to set it."""
    (found,) = ticks(ClockOffset().build(), 0, 30, ReaderHealth(clock_offsets={"n1/gpu": -3.2e8}))
    assert found.title == "the clock of n1/gpu is 3.2e+08 s behind the bus's"
    assert found.evidence["offset_seconds"] == -3.2e8


def test_refused_frames_are_said_by_reason() -> None:
    """Zero is no news; a first refusal is."""
    detector = RefusedFrames().build()
    assert ticks(detector, 0, 5, ReaderHealth(refused={"checksum": 0})) == []
    (found,) = ticks(detector, 6, 20, ReaderHealth(refused={"checksum": 2}))
    assert found.title == "2 frames were refused: checksum"
    assert [item.state for item in ticks(detector, 21, 400, ReaderHealth(refused={"checksum": 2}))] == [
        FindingState.RESOLVED
    ]


def said(findings: list[Finding]) -> list[tuple[str, str | None, str]]:
    """State, subject and severity of each."""
    return [(item.state.value, item.subject, item.severity.value) for item in findings]


def test_lag_of_a_topic_is_one_trouble_that_gets_worse_and_is_over_below_the_lower_limit() -> None:
    """From warning to page and back: nothing is called over while it is still late, and topics are apart."""
    detector, found = Lag().build(), list[Finding]()
    for begin, seconds in ((0, 8.0), (20, 40.0), (40, 8.0), (80, 0.0)):
        lag = {Topic.TRAIN: seconds, Topic.GPU: 8.0 if begin < 80 else 6.0}
        found += ticks(detector, begin, begin + 19 if begin != 40 else 79, ReaderHealth(lag_seconds=lag))
    assert said(found) == [
        ("firing", "telemetry.gpu", "warning"),
        ("firing", "telemetry.train", "warning"),
        ("firing", "telemetry.train", "critical"),
        ("resolved", "telemetry.train", "critical"),
    ]


def test_two_troubles_of_a_kind_at_once_have_subjects_of_their_own() -> None:
    """The end of one leaves the other open."""
    detector, holes = MissingFrames().build(), {"n1/gpu": Holes(3, START), "n1/gpu-events": Holes(1, START)}
    found = ticks(detector, 0, 40, ReaderHealth(holes=holes))
    found += ticks(detector, 41, 41, ReaderHealth(holes={"n1/gpu": Holes(3, START)}))
    assert [(item.state.value, item.node, item.subject) for item in found] == [
        ("firing", "n1", "n1/gpu"),
        ("firing", "n1", "n1/gpu-events"),
        ("resolved", "n1", "n1/gpu-events"),
    ]


def test_groups_of_which_the_first_names_are_the_same_have_subjects_of_their_own() -> None:
    """What a finding names is cut at eight; whom it is about is not."""
    subjects = set()
    for last in ("n98", "n99"):
        silent = {f"{name}/gpu": START for name in [*(f"n{number}" for number in range(10, 20)), last]}
        (found,) = ticks(SilentSource().build(), 0, 30, ReaderHealth(last_seen=silent))
        assert len(found.evidence["names"]) == NAMES_SAID
        subjects.add(found.subject)
    assert len(subjects) == 2


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("n1/gpu", {"node": "n1"}),
        ("n1/gpu-events", {"node": "n1"}),
        ("llm/a/0/train", {"job": "llm", "attempt": "a", "rank": 0}),
        ("llm/a/7/metric", {"job": "llm", "attempt": "a", "rank": 7}),
        ("llm/a/x/train", {}),
        ("llm/b/a/0/train", {}),
        ("n1/detect", {}),
        ("/gpu", {}),
        ("test", {}),
    ],
)
def test_a_place_is_named_only_where_the_source_proves_it(source: str, place: dict[str, object]) -> None:
    """A rank's stream is no node, and what is not known is null."""
    assert place_of(Group((source,), START)) == {**place, "simulated": False}


def test_a_simulated_node_that_falls_silent_is_simulated_trouble() -> None:
    """It opens nothing that looks real, and neither does a rack of them next to a real one."""
    sources = [f"{kind}{number}/gpu" for kind in ("real", "sim") for number in range(12)]
    simulated = frozenset(source for source in sources if source.startswith("sim"))
    health = ReaderHealth(last_seen=dict.fromkeys(sources, START), simulated=simulated)
    detector = SilentSource().build()
    found = ticks(detector, 0, 60, health)
    assert [(item.simulated, item.evidence["count"]) for item in found] == [(False, 12), (True, 12)]
    over = ticks(detector, 61, 61, replace(health, last_seen=dict.fromkeys(sources, START + 61)))
    assert [(item.simulated, item.subject) for item in over] == [(item.simulated, item.subject) for item in found]


def test_what_a_rank_sends_is_not_expected_for_ever() -> None:
    """A job's sources end with it."""
    last_seen = {"j/1/0/train": START, "node/training": START}
    assert ticks(SilentSource().build(), 0, 60, ReaderHealth(last_seen=last_seen)) == []


@pytest.mark.parametrize("step", [-7200, 7200], ids=["back", "forwards"])
def test_a_latch_is_not_blinded_by_a_step_of_the_clock(step: int) -> None:
    """What is bad is raised after its seconds, and what is well again is cleared after its own."""
    latch = Latch(10.0, 30.0)
    for second in range(5):
        latch.update(START + second, ["a"])
    raised = [second for second in range(5, 40) if latch.update(START + step + second, ["a"])[0]]
    assert raised == [15 if step < 0 else 5]
    latch.update(START + 10 * 3600, ["a"])
    over = [second for second in range(100) if latch.update(START + second, [])[1]]
    assert over == [31]


@pytest.mark.parametrize("step", [-7200.0, 7200.0], ids=["back", "forwards"])
def test_nodes_that_work_without_rows_are_found_after_a_step_of_the_clock(step: float) -> None:
    """Training rows of before the step do not hide it for hours."""
    detector, found = BusyWithoutRows().build(), list[Finding]()
    for second in range(500):
        now = START + second + (step if second >= 100 else 0.0)
        gpu = {"time": now, "node": "n", "gpu": 0, "simulated": False, "gpu_utilization_percent": 99.0}
        detector.observe(frame([gpu], "gpu/1"))
        if second < 100:
            detector.observe(frame([{"time": now, "job": "j", "attempt": "1", "rank": 0, "step": second, "node": "n"}]))
        since = START if second < 100 else START + 100 + step
        found += detector.tick(now, ReaderHealth(watching_since=since))
    assert [item.state for item in found] == [FindingState.FIRING]


def test_a_latch_that_adopts_keeps_the_names_that_it_knows_itself() -> None:
    """A finding gives eight names of a rack; where the whole rack is seen to be silent again, it is over with the
    last of them, and under the subject that was said."""
    sources = {f"n{number}/gpu": START for number in range(20)}
    (found,) = ticks(SilentSource().build(), 0, 20, ReaderHealth(last_seen=sources))
    detector = SilentSource().build()
    ticks(detector, 0, 20, ReaderHealth(last_seen=sources))
    detector.remember(replace(found, subject="as it was said", onset_time=START - 1), START + 20)
    half = {**sources, **dict.fromkeys(found.evidence["names"], START + 21)}
    assert ticks(detector, 21, 21, ReaderHealth(last_seen=half)) == []
    (over,) = ticks(detector, 22, 22, ReaderHealth(last_seen=dict.fromkeys(sources, START + 22)))
    assert (over.subject, over.onset_time) == ("as it was said", START - 1)
    assert group_of(found).place["subject"] == found.subject
