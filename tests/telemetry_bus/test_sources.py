"""A source's name says whose stream it is, and its first part keeps together what belongs together."""

from __future__ import annotations

import pytest

from telemetry_bus import FrameMaker, merge
from telemetry_bus.sources import JobSource, NodeSource, key_of, parse_source


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("n1/gpu", NodeSource("n1", "gpu")),
        ("n1/gpu-events", NodeSource("n1", "gpu-events")),
        ("job/try-2/7/train", JobSource("job", "try-2", 7, "train")),
        ("job/try-2/0/metric", JobSource("job", "try-2", 0, "metric")),
        ("job/try-2/0/event", JobSource("job", "try-2", 0, "event")),
        ("n1/detect", None),
        ("gpu", None),
        ("job/try-2/x/train", None),
        ("job/try-2/²/train", None),
        ("job/7/train", None),
        ("", None),
    ],
)
def test_a_name_says_whose_stream_it_is(name: str, source: NodeSource | JobSource | None) -> None:
    """A collector's, a rank's, or neither."""
    assert parse_source(name) == source


@pytest.mark.parametrize(("name", "key"), [("n1/gpu", "n1"), ("job/a/7/train", "job"), ("alone", "alone"), ("", "")])
def test_the_first_part_is_the_key(name: str, key: str) -> None:
    """All ranks of a job go together, and all streams of a node."""
    assert key_of(name) == key


def test_a_frame_has_the_key_of_its_first_run() -> None:
    """What is merged was brought under one key before."""
    frames = [FrameMaker(f"n{number}/ticks").make("tick/1", {"time": [1.0]}, 1.0) for number in range(3)]
    assert key_of(merge(frames)) == "n0"
