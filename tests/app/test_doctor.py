"""Doctor looks at every topic that a role needs, not at the busy ones only."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from app import doctor
from app.checks import Checked, Verdict
from app.settings import load
from telemetry_bus import Topic
from telemetry_bus.bus import Positions
from telemetry_bus.errors import TopicMissing
from telemetry_bus.runtime.clock import SystemClock

URL = "kafka://127.0.0.1:9092"
POSITIONS = "positions"


class Lacking:
    """A cluster on which one topic was not made."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """Where it ends, if it is there."""
        if topic == self._missing:
            raise TopicMissing(URL, topic)
        return {0: 0}

    async def committed(self, group: str) -> Positions:
        """Nothing, if there is a topic in which it could be."""
        if self._missing == POSITIONS:
            raise TopicMissing(URL, POSITIONS)
        return {}


@pytest.mark.parametrize("missing", [*Topic, POSITIONS])
async def test_a_topic_that_is_missing_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Its name is said, and what makes it."""

    @contextlib.asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Lacking]:
        yield Lacking(missing)

    monkeypatch.setattr(doctor, "open_bus", opened)
    settings = load(None, {"state": str(tmp_path), "bus": URL})
    checked = await doctor.CHECKS["bus"](settings, SystemClock())
    assert isinstance(checked, Checked)
    assert checked.verdict is Verdict.FAULT
    assert f"no topic {missing}" in checked.found
    assert "nantucket bus init" in checked.found
