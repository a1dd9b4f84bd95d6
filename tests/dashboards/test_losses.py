"""What is shown of loss and of backlogs: the worst by name, the rest in one sum, and the sums are right."""

from __future__ import annotations

from typing import Any

import pytest

from dashboards.losses import THE_REST, by_source
from dashboards.spools import FORGET_SECONDS, Spools
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.json_text import dumps
from telemetry_bus.ledger import SourceLedger

NOW = 1_700_000_000.0


def holed(makers: int) -> SourceLedger:
    """A ledger in which source ``n7`` misses 7 frames, and so on; and every source has sent one frame twice."""
    ledger = SourceLedger()
    for number in range(makers):
        maker = FrameMaker(f"n{number}")
        first = maker.make("tick/1", {"time": [NOW]}, NOW).manifest[0]
        maker.seq += number
        for run in (first, first, maker.make("tick/1", {"time": [NOW]}, NOW).manifest[0]):
            ledger.fresh(run, NOW)
    return ledger


def test_the_worst_sources_are_named_and_the_rest_is_one_number() -> None:
    """However many sources miss frames, so many are told, and the sum is that of the ledger."""
    ledger = holed(20)
    told = by_source(ledger, 3)
    assert told["outstanding"] == {"n19": 19, "n18": 18, "n17": 17, THE_REST: ledger.outstanding - 54}
    assert sum(told["duplicate"].values()) == 20
    assert told["lost"] == {}


def spool(node: str, time: float = NOW, **detail: Any) -> Frame:
    """What a collector tells of its spool."""
    columns = {"time": [time], "kind": ["spool"], "node": [node], "simulated": [False], "detail": [dumps(detail)]}
    return FrameMaker(f"{node}/spool").make("event/1", columns, time)


def test_backlogs_are_counted_by_nodes_frames_bytes_and_age() -> None:
    """The age goes on while nothing new is told; a node whose spool is empty has none."""
    spools = Spools()
    spools.observe(spool("a", frames=10, bytes=1_000, oldest_seconds=60.0, away=True))
    spools.observe(spool("b", frames=5, bytes=500, oldest_seconds=10.0, away=True))
    assert spools.total(NOW + 5) == {"nodes": 2, "frames": 15, "bytes": 1_500, "oldest_seconds": 65.0}
    spools.observe(spool("a", NOW + 6, frames=0, bytes=0, oldest_seconds=None, away=False))
    assert spools.total(NOW + 6)["nodes"] == 1
    spools.observe(spool("b", NOW - 6, frames=0, bytes=0, oldest_seconds=None, away=False))
    assert spools.total(NOW + 6)["nodes"] == 1
    spools.forget(NOW + FORGET_SECONDS)
    assert spools.total(NOW) == {"nodes": 0, "frames": 0, "bytes": 0, "oldest_seconds": None}


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"frames": -1, "bytes": 0, "oldest_seconds": 0},
        {"frames": "many", "bytes": 0, "oldest_seconds": 0},
        {"frames": 10**400, "bytes": 0, "oldest_seconds": 0},
        [],
    ],
)
def test_what_a_spool_tells_that_cannot_be_is_left_out(detail: Any) -> None:
    """The page shows what is known, and stops for nobody."""
    spools = Spools()
    columns = {"time": [NOW], "kind": ["spool"], "node": ["a"], "simulated": [False], "detail": [dumps(detail)]}
    spools.observe(FrameMaker("a/spool").make("event/1", columns, NOW))
    assert spools.total(NOW)["nodes"] == 0
