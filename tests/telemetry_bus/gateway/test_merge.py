"""Small frames wait for others, up to a time and a size; what is critical, and a last word, waits for nobody."""

from __future__ import annotations

import math
from typing import Any

import pytest

from telemetry_bus import Frame, FrameMaker, Topic, decode, encode
from telemetry_bus.gateway.entry import Entry, checked, is_critical
from telemetry_bus.gateway.merge import Batch, MergeOptions
from telemetry_bus.schemas import GPU
from tests.telemetry_bus.gateway.scene import event, gpu, gpu_frame, train_frame


class Owner:
    """Who sent it; nobody asks here."""

    def durable(self, id_: int) -> None:
        """Never called."""

    def not_taken(self, id_: int, error: Exception) -> None:
        """Never called."""


OWNER = Owner()


def entry(topic: Topic, payload: bytes, key: str = "rack", owner: Owner = OWNER) -> Entry:
    """A frame that came in."""
    return Entry(topic, key, decode(payload), payload, owner, 0)


def node(number: int) -> FrameMaker:
    """The maker of a node's frames."""
    return FrameMaker(f"n{number}/gpu")


def runs_of(batch: Batch) -> list[str]:
    """The sources in a batch, in order."""
    return [run.source for run in decode(batch.payload).manifest]


def test_frames_of_many_nodes_become_one_when_their_time_is_up() -> None:
    """Nothing goes before the time of the oldest; then all go as one frame with all rows and runs."""
    merger = MergeOptions(seconds=0.25).build()
    frames = [gpu_frame(node(number)) for number in range(64)]
    assert [merger.add(entry(Topic.GPU, encode(frame)), 10.0 + 0.001 * n) for n, frame in enumerate(frames)] == [
        []
    ] * 64
    assert merger.next_due() == 10.25
    assert merger.due(10.249) == []
    (batch,) = merger.due(10.25)
    merged = decode(batch.payload)
    assert merged.rows == 512
    assert list(merged.manifest) == [run for frame in frames for run in frame.manifest]
    assert len(batch.entries) == 64
    assert merger.next_due() is None


def test_a_frame_that_stayed_alone_goes_as_the_same_bytes() -> None:
    """Nothing is encoded anew where nothing was merged."""
    merger = MergeOptions().build()
    payload = gpu(node(0))
    merger.add(entry(Topic.GPU, payload), 0.0)
    (batch,) = merger.due(1.0)
    assert batch.payload is payload


def test_a_large_frame_goes_at_once_as_the_same_bytes_behind_what_waited() -> None:
    """Size is reason enough to go on; the order of a key is kept."""
    large = gpu(node(1), rows=4_096)
    merger = MergeOptions(large_bytes=len(large)).build()
    merger.add(entry(Topic.GPU, gpu(node(0))), 0.0)
    first, second = merger.add(entry(Topic.GPU, large), 0.1)
    assert runs_of(first) == ["n0/gpu"]
    assert second.payload is large


def test_a_merged_frame_stays_below_its_size() -> None:
    """What would make it larger than wanted begins the next one."""
    payload = gpu(node(0))
    merger = MergeOptions(bytes_wanted=int(3.5 * len(payload))).build()
    batches = [batch for number in range(7) for batch in merger.add(entry(Topic.GPU, gpu(node(number))), 0.0)]
    assert [len(batch.entries) for batch in batches] == [3, 3]
    assert [len(batch.entries) for batch in merger.everything()] == [1]


def test_rows_that_grow_beside_wider_ones_go_as_several_frames() -> None:
    """A frame that lacks the last columns is small; merged with one that has them it could be larger than any frame."""
    merger, rows = MergeOptions().build(), 20_000
    cells: dict[str, list[Any]]
    cells = {"time": [0.0] * rows, "node": ["n"] * rows, "gpu": list(range(rows)), "simulated": [True] * rows}
    narrow = [encode(node(number).make("gpu/1", cells, 0.0)) for number in range(6)]
    last = {GPU.names[-1]: [1.0]}
    wide = encode(node(6).make("gpu/1", {name: values[:1] for name, values in cells.items()} | last, 0.0))
    for payload in (*narrow, wide):
        assert merger.add(entry(Topic.GPU, payload), 0.0) == []
    batches = merger.due(1.0)
    assert len(batches) > 1
    assert [source for batch in batches for source in runs_of(batch)] == [f"n{number}/gpu" for number in range(7)]
    assert sum(len(batch.entries) for batch in batches) == 7


@pytest.mark.parametrize(
    ("topic", "key"), [pytest.param(Topic.GPU, "another", id="key"), pytest.param(Topic.BACKLOG, "rack", id="topic")]
)
def test_only_frames_of_one_topic_and_key_are_merged(topic: Topic, key: str) -> None:
    """Live and backlog, and what belongs into different partitions, stay apart."""
    merger = MergeOptions().build()
    merger.add(entry(Topic.GPU, gpu(node(0))), 0.0)
    merger.add(entry(topic, gpu(node(1)), key), 0.0)
    assert sorted(batch.topic for batch in merger.due(1.0)) == sorted([Topic.GPU, topic])


def test_backlog_of_different_schemas_stays_apart() -> None:
    """A frame has one schema."""
    merger = MergeOptions().build()
    merger.add(entry(Topic.BACKLOG, gpu(node(0))), 0.0)
    merger.add(entry(Topic.BACKLOG, event(FrameMaker("n0/gpu-events"))), 0.0)
    assert [len(batch.entries) for batch in merger.due(1.0)] == [1, 1]


@pytest.mark.parametrize(
    ("values", "critical"),
    [
        pytest.param({}, False, id="healthy"),
        pytest.param({"loss": None}, False, id="absent"),
        pytest.param({"loss": 0.0, "nonfinite": 0}, False, id="zero"),
        pytest.param({"loss": math.nan}, True, id="nan-loss"),
        pytest.param({"loss": math.inf}, True, id="infinite-loss"),
        pytest.param({"grad_norm": -math.inf}, True, id="infinite-gradient"),
        pytest.param({"nonfinite": 3}, True, id="nonfinite-elements"),
    ],
)
def test_a_row_with_a_number_that_is_none_is_critical(values: dict[str, Any], critical: bool) -> None:
    """Absent, zero and NaN are three things: only what is no number does not wait."""
    assert is_critical(Topic.TRAIN, train_frame(FrameMaker("j/a/0/train"), 5, **values)) is critical


def test_what_is_critical_takes_along_what_came_before_it() -> None:
    """A NaN waits for nobody, and does not overtake the steps before it."""
    merger, maker = MergeOptions().build(), FrameMaker("j/a/0/train")
    steps = [encode(train_frame(maker, step)) for step in range(3)]
    assert [merger.add(entry(Topic.TRAIN, payload), 0.0) for payload in steps] == [[]] * 3
    (batch,) = merger.add(entry(Topic.TRAIN, encode(train_frame(maker, 3, loss=math.nan))), 0.01)
    assert decode(batch.payload).numbers("step")[0].tolist() == [0, 1, 2, 3]


def test_an_event_goes_at_once() -> None:
    """An XID is not held back for a quarter of a second."""
    merger = MergeOptions().build()
    (batch,) = merger.add(entry(Topic.EVENTS, event(FrameMaker("n0/gpu-events"))), 0.0)
    assert runs_of(batch) == ["n0/gpu-events"]


def test_the_last_word_of_a_link_goes_at_once() -> None:
    """Who has hung up may have died: what it said last waits no longer, and others' frames do."""
    merger, gone = MergeOptions().build(), Owner()
    merger.add(entry(Topic.GPU, gpu(node(0)), "a", owner=gone), 0.0)
    merger.add(entry(Topic.GPU, gpu(node(1)), "b"), 0.0)
    (batch,) = merger.last_word(gone)
    assert runs_of(batch) == ["n0/gpu"]
    assert len(merger.everything()) == 1


def test_without_a_time_nothing_waits() -> None:
    """merge_seconds = 0 passes every frame on."""
    merger = MergeOptions(seconds=0.0).build()
    assert len(merger.add(entry(Topic.GPU, gpu(node(0))), 0.0)) == 1


def keyed(frame: Frame, key: str, group: str | None) -> str:
    """The key under which a frame goes up."""
    return checked("telemetry.gpu" if frame.schema_id == "gpu/1" else "telemetry.train", key, encode(frame), group)[1]


def test_nodes_go_under_the_name_of_their_gateway_and_jobs_under_their_own() -> None:
    """A rack's nodes can be merged; a job's rows stay in its partition whichever gateway they came by."""
    of_node, of_job = gpu_frame(node(7)), train_frame(FrameMaker("j/a/0/train"), 0)
    assert [keyed(of_node, key, "rack-1") for key in ("", "n7")] == ["rack-1", "rack-1"]
    assert [keyed(of_job, key, "rack-1") for key in ("", "j")] == ["j", "j"]
    assert keyed(of_node, "", None) == "n7"


def test_racks_go_in_lanes_that_every_gateway_finds_alike() -> None:
    """600 racks' groups become a few dozen keys, the same for the same rack, so that there is something to merge."""
    frame = gpu_frame(node(7))
    lanes = {keyed(frame, f"rack-{number}", "top-a") for number in range(600)}
    assert 16 < len(lanes) <= 32
    assert keyed(frame, "rack-9", "top-a") == keyed(frame, "rack-9", "top-b")
