"""What the topic of positions holds that nobody of us has written is passed over."""

import json

import pytest

from telemetry_bus import Topic
from telemetry_bus.kafka.positions import Folded, commit_key, commit_value

OURS = {Topic.TICKS: {0: 7}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(b"[" * 20_000, b"", id="a-deep-key"),
        pytest.param(json.dumps(["commit", "detect", "x"]).encode(), b'{"a":' * 20_000, id="deep-positions"),
        pytest.param(json.dumps(["commit", "detect", "x"]).encode(), b'{"ticks": {"0": Infinity}}', id="infinite"),
        pytest.param(json.dumps(["commit", "detect", "x"]).encode(), b'{"no.topic": {"0": 1}}', id="no-topic"),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_a_foreign_record_is_passed_over(key: bytes | None, value: bytes | None) -> None:
    """Whoever asks for positions learns ours, before it and behind it."""
    folded = Folded()
    folded.take(commit_key("alert", OURS), commit_value(OURS))
    folded.take(key, value)
    folded.take(commit_key("detect", OURS), commit_value(OURS))
    assert folded.groups["alert"] == folded.groups["detect"] == OURS
