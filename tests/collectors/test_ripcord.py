"""Critical findings while the bus is away: kept on disk, said once, and published first when it is back."""

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from collectors.ripcord import Ripcord
from collectors.ripcord_notes import NOTES_MAX, Kept, Notes, Said
from collectors.upward import DOUBT_SECONDS, FINDINGS_SECONDS_MAX, Upward
from telemetry_bus import Finding, FindingKind, FindingState, Frame, FrameMaker, Severity, Topic, decode
from telemetry_bus.outlet import Report
from tests.collectors.outlets import FarEnd, going_up, spooling, train_frame
from tests.collectors.virtual_time import VirtualTime

HOUR = 3600.0


class NanLosses:
    """A detector in the shape of the real one: it says a job's first NaN, and its end after three finite steps."""

    topics = frozenset({Topic.TRAIN})

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        self.finite = 0
        self.ticks = 0

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Look at every row."""
        found = []
        for row, time in zip(frame.batch.to_pylist(), frame.times().tolist(), strict=True):
            if math.isnan(row["loss"]) and row["job"] not in self.open:
                self.open[row["job"]] = row["step"]
                self.finite = 0
                found.append(self.finding(row["job"], row["step"], time))
            elif not math.isnan(row["loss"]) and row["job"] in self.open:
                self.finite += 1
                if self.finite == 3:
                    step = self.open.pop(row["job"])
                    found.append(self.finding(row["job"], step, time, FindingState.RESOLVED))
        return found

    def tick(self, now: float) -> Sequence[Finding]:
        """Time alone finds nothing."""
        del now
        self.ticks += 1
        return ()

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said."""
        del now
        assert finding.job is not None
        assert finding.onset_step is not None
        self.open[finding.job] = finding.onset_step

    @staticmethod
    def finding(job: str, step: int, time: float, state: FindingState = FindingState.FIRING) -> Finding:
        """A finding whose id is made of what it is about."""
        return Finding(
            f"{job}-{step}-{state}", time, "nonfinite", FindingKind.NONFINITE, state, Severity.CRITICAL, "NaN",
            job=job, attempt="1", onset_step=step, onset_time=time, evidence={"why": "nonfinite"},
        )  # fmt: skip


@dataclass
class Job:
    """A job that reports a step now and then."""

    upward: Upward
    ripcord: Ripcord
    time: VirtualTime
    maker: FrameMaker
    step: int = 0

    async def steps(self, count: int, loss: float = 1.0) -> None:
        """Log steps, a tenth of a second apart."""
        for _ in range(count):
            await self.upward.publish(Topic.TRAIN, train_frame(self.maker, self.time.now(), self.step, loss))
            self.step += 1
            await self.time.drive_for(0.1)


@asynccontextmanager
async def node(folder: Path, far: FarEnd, time: VirtualTime, maker: FrameMaker | None = None) -> AsyncIterator[Job]:
    """A node with a spool, a detector, and a job."""
    async with (
        spooling(folder, time) as spool,
        Ripcord([NanLosses()], far.report, spool.moment, node="node-1", folder=folder, sleep=time.sleep) as ripcord,
        Upward(far, spool, time, node="node-1", ripcord=ripcord, sleep=time.sleep) as upward,
    ):
        yield Job(upward, ripcord, time, maker or FrameMaker("job/1/0/train"))


@pytest.fixture
def far() -> FarEnd:
    """Return a far end that pages while it is away from its bus."""
    far = FarEnd()
    far.pages = True
    return far


@pytest.fixture
def time() -> VirtualTime:
    """Return a clock that stands."""
    return VirtualTime()


def said(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Ids and states."""
    return [(finding.id, finding.state.value) for finding in findings]


async def test_while_the_bus_is_there_the_node_says_nothing(tmp_path: Path, far: FarEnd, time: VirtualTime) -> None:
    """The central detectors speak; the local one only learns what is open."""
    async with node(tmp_path, far, time) as job:
        await job.steps(3)
        await job.steps(3, math.nan)
        await job.steps(5)
        await time.drive_for(5.0)
    assert (far.findings, far.paged) == ([], [])


async def test_a_nan_during_an_outage_is_paged_once_and_published_first(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """One report, one page; when the bus is back the finding goes up before any row, with the receipts in it."""
    async with node(tmp_path, far, time) as job:
        await job.steps(3)
        far.away = True
        await job.steps(800)
        assert job.upward.away
        await job.steps(1, math.nan)
        await far.until(lambda: bool(far.paged))
        await job.steps(100, math.nan)
        before = len(far.log)
        far.away = False
        await time.drive(lambda: not job.upward.away)
        await job.steps(5, math.nan)
        await time.drive(lambda: not job.upward.depth.frames)
        assert job.ripcord.reports["paged"] == job.ripcord.reports["published"] == 1
    assert said(far.paged) == said(far.findings) == [("job-803-firing", "firing")]
    assert far.findings[0].evidence["ripcord"] == {
        "receipts": ["oncall:delivery:proof"], "node": "node-1", "while_away": True
    }  # fmt: skip
    assert far.findings[0].evidence["why"] == "nonfinite"
    telemetry = [entry for entry in far.log[before:] if entry in ("finding", "telemetry.train", "telemetry.backlog")]
    assert telemetry[0] == "finding"


async def test_without_anybody_who_pages_it_is_kept_and_published_when_somebody_is_back(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """It is asked for again and again, within its bounds, and nothing is lost."""
    far.pages = False
    async with node(tmp_path, far, time) as job:
        far.away = True
        await job.steps(1, math.nan)
        await time.drive_for(60.0)
        assert 25 <= job.ripcord.reports["failed"] <= 70
        assert job.ripcord.unpublished == 1
        far.away = False
        await time.drive(lambda: not job.ripcord.unpublished)
    assert said(far.findings) == [("job-0-firing", "firing")]


async def test_trouble_that_the_central_detectors_have_said_is_not_said_again(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """A job that was sick before the outage pages nobody during it; its end in the outage is told when it is over."""
    async with node(tmp_path, far, time) as job:
        await job.steps(5, math.nan)
        await time.drive_for(30.0)
        far.away = True
        await job.steps(50, math.nan)
        await time.drive_for(5.0)
        assert far.paged == []
        await job.steps(3)
        far.away = False
        await time.drive(lambda: not job.upward.away)
        await time.drive(lambda: not job.ripcord.unpublished)
    assert [finding.state for finding in far.findings] == [FindingState.RESOLVED]


async def test_what_was_found_a_moment_before_the_bus_went_away_is_said(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """Nobody may have read that row: it lies in a log that is away."""
    async with node(tmp_path, far, time) as job:
        await job.steps(1, math.nan)
        far.away = True
        await job.steps(1, math.nan)
        await far.until(lambda: bool(far.paged))
    assert said(far.paged) == [("job-0-firing", "firing")]


async def test_no_two_findings_are_said_under_one_number(tmp_path: Path, time: VirtualTime) -> None:
    """A reader drops the second frame of a number: what was found before the outage gets one when it is said."""
    numbers: list[tuple[uuid.UUID, int]] = []

    async def report(payload: bytes) -> Report:
        (run,) = decode(payload).manifest
        numbers.append((run.boot, run.seq))
        return Report(published=True)

    async with (
        spooling(tmp_path, time) as spool,
        Ripcord([NanLosses()], report, spool.moment, node="node-1", folder=tmp_path, sleep=time.sleep) as ripcord,
    ):
        maker = FrameMaker("job/1/0/train")
        ripcord.seen(Topic.TRAIN, train_frame(maker, time.now(), 0, math.nan), away=False)
        ripcord.doubt()
        for step in range(1, 4):
            ripcord.seen(Topic.TRAIN, train_frame(maker, time.now(), step), away=True)
        while ripcord.unpublished:
            await asyncio.sleep(0)
    assert len(numbers) == len(set(numbers)) == 2


async def test_the_first_frame_that_gets_no_answer_is_paged_before_anybody_gives_it_up(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """A far end that hangs costs half a second, not the three after which it counts as away."""
    report = far.report
    far.away = True
    loop = asyncio.get_running_loop()
    async with (
        spooling(tmp_path, time) as spool,
        Ripcord([NanLosses()], report, spool.moment, node="node-1", folder=tmp_path) as ripcord,
        Upward(Hanging(), spool, time, node="node-1", ripcord=ripcord) as upward,
    ):
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            frame = train_frame(FrameMaker("job/1/0/train"), time.now(), 0, math.nan)
            sending = tasks.create_task(upward.publish(Topic.TRAIN, frame))
            await far.until(lambda: bool(far.paged))
            assert DOUBT_SECONDS * 0.9 <= loop.time() - began < 2.0
            assert not sending.done()


class Deaf(FarEnd):
    """A far end that takes frames, and never answers a report."""

    async def report(self, payload: bytes) -> Report:
        """Hang."""
        del payload
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_finding_that_nobody_answers_does_not_keep_rows_back(tmp_path: Path, time: VirtualTime) -> None:
    """Findings go first, but rows wait for them for some seconds only."""
    far, loop = Deaf(), asyncio.get_running_loop()
    async with node(tmp_path, far, time) as job:
        far.away = True
        await job.steps(1, math.nan)
        began = loop.time()
        far.away = False
        while job.upward.away or job.upward.depth.frames:
            await time.drive_for(0.5)
            await asyncio.sleep(0.02)
        assert loop.time() - began < 2 * FINDINGS_SECONDS_MAX
        assert job.ripcord.unpublished == 1
    assert far.seqs(Topic.TRAIN) + far.seqs(Topic.BACKLOG) == [0]


class Hanging(FarEnd):
    """A far end that never answers."""

    async def publish(self, topic: Topic, payloads: Sequence[bytes], key: str = "") -> None:
        """Hang."""
        del topic, payloads, key
        await asyncio.Event().wait()


async def test_an_end_that_was_found_after_the_outage_is_told_if_its_beginning_was_ours(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """The central detectors may never have seen a bad row of it: without us the incident would stay open for ever."""
    async with node(tmp_path, far, time) as job:
        far.away = True
        await job.steps(5, math.nan)
        far.away = False
        await time.drive(lambda: not job.upward.away)
        await job.steps(5)
        await time.drive(lambda: not job.ripcord.unpublished)
        await time.drive_for(3.0)
    assert said(far.findings) == [("job-0-firing", "firing"), ("job-0-resolved", "resolved")]


async def test_a_killed_collector_says_nothing_twice_and_forgets_nothing(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """The next process knows what was paged, with its receipts, and what is open, and keeps the number."""
    maker = FrameMaker("job/1/0/train")
    async with node(tmp_path, far, time, maker) as job:
        far.away = True
        await job.steps(1, math.nan)
        await far.until(lambda: bool(far.paged))
        await time.drive_for(1.0)
    async with node(tmp_path, far, time, maker) as again:
        again.step = 1
        await again.steps(20, math.nan)
        await time.drive_for(5.0)
        assert len(far.paged) == 1
        far.away = False
        await time.drive(lambda: not again.ripcord.unpublished)
    assert said(far.findings) == [("job-0-firing", "firing")]
    assert far.findings[0].evidence["ripcord"]["receipts"] == ["oncall:delivery:proof"]


async def test_rows_that_were_spooled_and_not_looked_at_before_a_kill_are_looked_at(
    tmp_path: Path, far: FarEnd, time: VirtualTime
) -> None:
    """The SDK was told "durable", and the process died before its detector spoke: the next one's speaks."""
    maker = FrameMaker("job/1/0/train")
    far.away = True
    async with going_up(tmp_path, far, time, sleep=time.sleep) as upward:  # no detector looks here
        await upward.publish(Topic.TRAIN, train_frame(maker, time.now(), 0, math.nan))
    (tmp_path / "findings.json").unlink(missing_ok=True)
    async with node(tmp_path, far, time, maker):
        await far.until(lambda: bool(far.paged))
    assert said(far.paged) == [("job-0-firing", "firing")]


@pytest.mark.parametrize("step", [-3 * HOUR, 3 * HOUR])
async def test_a_finding_follows_a_clock_that_was_set(
    tmp_path: Path, far: FarEnd, time: VirtualTime, step: float
) -> None:
    """Its times are on the clock as it is when it is published, as its rows are."""
    async with node(tmp_path, far, time) as job:
        far.away = True
        await job.steps(1, math.nan)
        await time.drive_for(100.0)
        time.step(step)
        far.away = False
        await time.drive(lambda: bool(far.findings))
    finding = far.findings[0]
    assert finding.onset_time == pytest.approx(finding.time, abs=1e-3)
    assert 100.0 <= time.now() - finding.time < 130.0


async def test_a_detector_that_fails_costs_no_row(tmp_path: Path, far: FarEnd, time: VirtualTime) -> None:
    """It is counted, and the frame goes up."""

    class Broken(NanLosses):
        def observe(self, frame: Frame) -> Sequence[Finding]:
            raise RuntimeError("a bug")

    async with (
        spooling(tmp_path, time) as spool,
        Ripcord([Broken()], far.report, spool.moment, node="node-1", folder=tmp_path, sleep=time.sleep) as ripcord,
        Upward(far, spool, time, node="node-1", ripcord=ripcord, sleep=time.sleep) as upward,
    ):
        await upward.publish(Topic.TRAIN, train_frame(FrameMaker("job/1/0/train"), time.now(), 0))
        assert ripcord.detector_errors == 1
    assert far.seqs(Topic.TRAIN) == [0]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"finding": "AAAA"}]', "\0\0"])
async def test_notes_that_cannot_be_read_are_left_out(
    tmp_path: Path, far: FarEnd, time: VirtualTime, text: str
) -> None:
    """A collector always starts."""
    (tmp_path / "findings.json").write_text(text)
    async with node(tmp_path, far, time) as job:
        far.away = True
        await job.steps(1, math.nan)
        await far.until(lambda: bool(far.paged))


async def test_notes_are_bounded_and_what_everybody_knows_goes_first(tmp_path: Path, time: VirtualTime) -> None:
    """A job that goes sick again and again cannot fill the disk; what is not said outlives what is."""
    async with spooling(tmp_path / "spool", time) as spool:
        notes = Notes(tmp_path / "findings.json")
        for number in range(NOTES_MAX + 10):
            finding = NanLosses.finding(f"job-{number}", number, time.now())
            state = Said.PUBLISHED if number >= 5 else Said.NOT_YET
            notes.put(Kept(finding, spool.boot, number, spool.moment(), state, False))
        await notes.write()
    assert len(list(notes)) == NOTES_MAX
    assert sum(kept.said is Said.NOT_YET for kept in notes) == 5
    text = await asyncio.to_thread((tmp_path / "findings.json").read_text)
    assert len(json.loads(text)) == NOTES_MAX
    again = Notes(tmp_path / "findings.json")
    await asyncio.to_thread(again.load)
    assert list(again) == list(notes)
