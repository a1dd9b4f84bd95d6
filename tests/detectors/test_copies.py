"""Copies and slices of the detectors: what one says of its own reading is its own to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detectors import Detector, ReaderHealth, detector_config
from detectors.watching import GONE_SECONDS
from telemetry_bus import Finding, FindingKind, FindingState, FrameMaker, Severity, Topic, encode, findings_frame
from telemetry_bus.bus import Slice
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.findings import finding_id
from telemetry_bus.runtime.clock import ManualClock
from tests.detectors.test_agents import NAN, Echo, Scene

START = 1_700_000_000.0


def ticked(detector: Detector, seconds: range, **health: object) -> list[Finding]:
    """What ``detector`` says at these seconds from the start, of readers that tick all the time unless told."""
    found: list[Finding] = []
    for second in seconds:
        seen = {f"{node}/ticks": START + second for node in ("n1", "n2")} | health.get("gone", {})  # type: ignore[operator]
        given = {key: value for key, value in health.items() if key != "gone"}
        found += detector.tick(START + second, ReaderHealth(last_seen=seen, **given))  # type: ignore[arg-type]
    return found


BEHIND = {Topic.TRAIN: 20.0}


def test_two_copies_that_lag_are_two_troubles_and_each_has_its_own_end() -> None:
    """One that keeps up does not end what another still suffers from."""
    one, two = detector_config("lag").build(), detector_config("lag").build()
    (first,) = ticked(one, range(12), lag_seconds=BEHIND, reader="n1/detect")
    (second,) = ticked(two, range(12), lag_seconds=BEHIND, reader="n2/detect")
    assert (first.subject, second.subject) == (
        "telemetry.train read by n1/detect",
        "telemetry.train read by n2/detect",
    )
    (over,) = ticked(one, range(12, 30), reader="n1/detect")
    assert (over.state, over.subject) == (FindingState.RESOLVED, first.subject)


def test_a_copy_that_starts_leaves_the_lag_of_a_living_one_alone() -> None:
    """It reads fast itself; the other does not, and will say so when it does."""
    (said,) = ticked(detector_config("lag").build(), range(12), lag_seconds=BEHIND, reader="n1/detect")
    other = detector_config("lag").build()
    other.remember(said, START + 13)
    assert ticked(other, range(13, 200), reader="n2/detect") == []


def test_a_copy_that_lagged_and_has_gone_leaves_no_trouble_open() -> None:
    """Its clock ticks no more, so it will never say the end itself: whoever started meanwhile does."""
    (said,) = ticked(detector_config("lag").build(), range(12), lag_seconds=BEHIND, reader="n1/detect")
    other = detector_config("lag").build()
    other.remember(said, START + 13)
    gone = {"n1/ticks": START + 12}
    until = int(GONE_SECONDS) + 13
    assert ticked(other, range(13, until), reader="n2/detect", gone=gone) == []
    (over,) = ticked(other, range(until, until + 30), reader="n2/detect", gone=gone)
    assert (over.state, over.subject) == (FindingState.RESOLVED, said.subject)
    assert "n1/detect" in over.title


def test_a_copy_that_is_started_again_ends_what_it_said() -> None:
    """Under its own name it takes up its own lag."""
    (said,) = ticked(detector_config("lag").build(), range(12), lag_seconds=BEHIND, reader="n1/detect")
    again = detector_config("lag").build()
    again.remember(said, START + 13)
    (over,) = ticked(again, range(13, 40), reader="n1/detect")
    assert (over.state, over.subject) == (FindingState.RESOLVED, said.subject)


@pytest.mark.parametrize(
    ("name", "trouble", "subject"),
    [
        ("refused_frames", {"refused": {"checksum": 1}}, "checksum of slice 1/2"),
        ("missing_frames", {"lost": 7}, "all sources of slice 1/2"),
        ("lag", {"lag_seconds": BEHIND}, "telemetry.train read by n1/detect of slice 1/2"),
    ],
)
def test_what_a_slice_says_of_its_partitions_is_its_own_trouble(
    name: str, trouble: dict[str, object], subject: str
) -> None:
    """Another slice that refuses, loses or lags no more does not end it."""
    (said,) = ticked(detector_config(name).build(), range(12), reader="n1/detect", part="1/2", **trouble)
    assert said.subject == subject


@pytest.mark.parametrize(("part", "says"), [("", 1), ("0/2", 0)])
def test_a_slice_calls_no_job_unreported_whose_rows_another_slice_reads(part: str, says: int) -> None:
    """A node's GPUs lie in the partition of the node, the rows of its jobs in that of the job."""
    detector, maker = detector_config("busy_without_rows").build(), FrameMaker("n1/gpu")
    found: list[Finding] = []
    for second in range(200):
        now = START + second
        row = {"time": [now], "node": ["n1"], "gpu": [0], "simulated": [False], "gpu_utilization_percent": [90.0]}
        detector.observe(maker.make("gpu/1", row, now))
        found += detector.tick(now, ReaderHealth(watching_since=START - 1000, part=part))
    assert len(found) == says


@pytest.mark.parametrize(
    ("said_by", "part", "is_handed_over"),
    [
        ("0/2", Slice(0, 2), True),
        ("1/2", Slice(0, 2), False),
        ("1/2", Slice(0, 4), True),
        ("1/2", Slice(), True),
        (None, Slice(0, 2), True),
        (None, Slice(), True),
    ],
)
async def test_a_slice_takes_up_what_its_own_copies_have_said(
    tmp_path: Path, said_by: str | None, part: Slice, is_handed_over: bool
) -> None:
    """The rows of another slice are not read here; where the topics are cut anew, everybody takes up everything."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path / "bus", clock) as bus:
        scene = Scene(bus, clock)
        evidence = {} if said_by is None else {"slice": said_by}
        said = Finding(
            id=finding_id("before"), time=clock.now(), detector="echo", kind=FindingKind.STALL, job="j",
            state=FindingState.FIRING, severity=Severity.INFO, title="said", evidence=evidence,
        )  # fmt: skip
        frame = findings_frame(FrameMaker("other/detect"), [said], clock.now())
        await bus.publish(Topic.FINDINGS, [encode(frame)])
        async with scene.running(Echo("echo"), part=part):
            clock.advance(5.0)
            await scene.committed_beyond(await scene.step(1))
        echo = Echo("echo")
        async with scene.running(echo, part=part):
            clock.advance(5.0)
            await scene.committed_beyond(await scene.step(2))
        assert [finding.title for finding in echo.remembered if finding.title == "said"] == ["said"] * is_handed_over


@pytest.mark.parametrize("is_cut_off", [True, False], ids=["a node that was cut off", "another detector"])
async def test_an_end_that_only_a_cut_off_node_has_seen_is_an_end(tmp_path: Path, is_cut_off: bool) -> None:
    """The finite steps of an outage are not among the live rows: without that word, what is bad next would be taken for
    the same trouble, of which everybody was told that it is over."""
    clock = ManualClock()
    async with EmbeddedBus(tmp_path / "bus", clock) as bus:
        scene = Scene(bus, clock)
        async with scene.running(detector_config("nonfinite").build()):
            await scene.committed_beyond(await scene.step(1))
            await scene.committed_beyond(await scene.step(2, grad_norm=NAN))
            (first,) = await scene.said()
            clock.advance(60.0)
            over = replace(first, id="over", state=FindingState.RESOLVED, time=clock.now())
            over = replace(over, evidence={"ripcord": {"receipts": []}} if is_cut_off else {})
            frame = findings_frame(FrameMaker("n1/ripcord"), [over], clock.now())
            await bus.publish(Topic.FINDINGS, [encode(frame)])
            await scene.alive(1)
            for step in range(60, 70):
                clock.advance(1.0)
                await scene.committed_beyond(await scene.step(step, grad_norm=NAN))
        firing = [finding for finding in await scene.said() if finding.state is FindingState.FIRING]
    assert len({finding.evidence["episode_step"] for finding in firing}) == 1 + is_cut_off
