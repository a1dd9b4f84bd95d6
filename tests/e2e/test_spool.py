"""Real processes and a real Kafka that is taken away: nothing is missing, nothing twice, and one page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.processes import talking

BENCH_SECONDS = 240.0
"""It takes 70 s on two quiet cores."""


@pytest.mark.timeout(300)
async def test_an_outage_with_a_kill_in_the_middle_loses_nothing_and_pages_once(
    service_binary: Callable[[str], Path],
) -> None:
    """The broker is stopped, a job goes NaN, the collector is killed and started again, the broker comes back: every
    frame arrives and is visible once, the NaN is paged within a second by the gateway, and by nobody afterwards."""
    service_binary("kafka")
    async with talking("the benchmark", ["app.cli", "bench", "spool", "--outage", "16", "--json"]) as bench:
        result = await bench.line(lambda line: line.get("bench") == "spool", BENCH_SECONDS)
        assert await bench.process.wait() == 0
    assert (result["frames_missing"], result["frames_duplicate"], result["refused"]) == (0, 0, 0)
    assert result["frames"] > 40
    assert result["catch_up_factor"] is not None
    assert result["nan_page_ms"] < 2_000  # a second where nothing else runs; here are other tests
    assert result["pages_after"] == 0
