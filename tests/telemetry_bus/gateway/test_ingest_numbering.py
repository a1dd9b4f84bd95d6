"""Loss is measured: whatever becomes of requests, no reader waits for a frame that nobody made."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import Frame, Intake, Record, Topic, encode
from telemetry_bus.frames import RUNS_MAX, batch_of
from telemetry_bus.gateway.numbering import SOURCES_MAX, UNUSED_MAX, Numbering

NOW = 1_764_000_000.0


def tick(numbering: Numbering, source: str) -> Frame:
    """A frame of one row."""
    return numbering.frame("tick/1", batch_of("tick/1", {"time": [NOW]}), [(source, 1, NOW)])


def read(intake: Intake, frame: Frame, offset: int) -> int:
    """How many rows of the frame a reader takes."""
    taken = intake.take(Record(Topic.TICKS, 0, offset, NOW, encode(frame)))
    assert taken.refusals == ()
    return 0 if taken.frame is None else taken.frame.rows


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["durable", "failed", "unknown"])), max_size=150))
def test_whatever_fails_no_frame_is_missing_and_no_row_is_dropped(story: list[tuple[str, str]]) -> None:
    """After one more frame of each source nothing is outstanding or lost, and every durable row was taken once.

    "unknown" was written although its sender was told that it failed: its rows are there, and no others pass for them.
    """
    numbering, intake = Numbering(), Intake()
    rows = durable = 0
    for at, (source, became) in enumerate([*story, ("a", "durable"), ("b", "durable")]):
        frame = tick(numbering, source)
        if became != "failed":
            rows += read(intake, frame, at)
            durable += 1
        if became != "durable":
            numbering.unused(frame)
    assert rows == durable
    assert (intake.ledger.outstanding, intake.ledger.lost_total) == (0, 0)


def test_a_long_outage_ends_in_another_boot() -> None:
    """What waits to be carried along is bounded: beyond it the source begins anew, and nothing is missed."""
    numbering, intake = Numbering(), Intake()
    first = tick(numbering, "a")
    assert read(intake, first, 0) == 1
    for _ in range(UNUSED_MAX + 1):
        numbering.unused(tick(numbering, "a"))
    last = tick(numbering, "a")
    assert len(last.manifest) <= UNUSED_MAX + 1
    assert last.manifest[0].boot != first.manifest[0].boot
    assert read(intake, last, 1) == 1
    assert intake.ledger.outstanding == 0


def test_sources_beyond_the_bound_come_back_as_another_boot() -> None:
    """The source that was silent longest is forgotten; when it is back, its rows are no repetition."""
    boots = iter(uuid.UUID(int=number) for number in range(SOURCES_MAX + 10))
    numbering, intake = Numbering(lambda: next(boots)), Intake()
    assert read(intake, tick(numbering, "silent"), 0) == 1
    batch = batch_of("tick/1", {"time": [NOW]})
    for number in range(SOURCES_MAX):
        numbering.frame("tick/1", batch, [(f"s{number}", 1, NOW)])
    assert read(intake, tick(numbering, "silent"), 1) == 1
    assert intake.ledger.duplicate_total == 0


def test_many_sources_that_failed_often_fit_into_a_frame() -> None:
    """A job's 4,096 ranks through an outage: what is carried along never makes a frame that nobody takes."""
    numbering, sources = Numbering(), [f"run/1/{rank}/train" for rank in range(4_096)]
    ticks = batch_of("tick/1", {"time": [NOW] * len(sources)})
    for _ in range(6):
        frame = numbering.frame("tick/1", ticks, [(source, 1, NOW) for source in sources])
        assert len(frame.manifest) <= RUNS_MAX
        assert [run.source for run in frame.manifest if run.rows] == sources
        numbering.unused(frame)
