"""The demo as somebody runs it: a real job goes bad, and the page is held against what really happened."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = {
    "ok", "job", "first_bad_step", "first_bad_parameter", "paged_step", "bad_step_to_page_ms", "page", "dashboard",
    "frames_missing",
}  # fmt: skip
SEED = 7


@pytest.mark.timeout(200)  # the job trains hundreds of steps, on a machine that other tests may share
async def test_the_demo_ends_well_with_the_page_that_matches_the_ledger(tmp_path: Path) -> None:
    """`demo --json` prints one line with the contract's keys; the page names the job's own first bad step and
    parameter, nothing was lost on the way, and somebody's configured bus is left alone."""
    elsewhere = tmp_path / "somebodys bus"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", "demo", "--json", "--seed", str(SEED), "--simulate", "8",
        cwd=REPOSITORY, env={**os.environ, "NANTUCKET_BUS": elsewhere.as_uri()},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    lines = out.decode().splitlines()
    assert process.returncode == 0, err.decode() + out.decode()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert set(result) == KEYS
    assert set(result["dashboard"]) == {"url", "frames_seen"}
    assert result["ok"] is True
    incident = result["page"]["incident"]
    assert result["page"]["status"] in ("firing", "updated")
    assert result["first_bad_step"] == result["paged_step"] == incident["detected_step"]
    assert (incident["job"], incident["where"]["rank"]) == (result["job"], 0)
    assert incident["where"]["parameter"] == result["first_bad_parameter"]
    assert result["bad_step_to_page_ms"] > 0
    assert result["frames_missing"] == 0
    assert result["dashboard"]["frames_seen"] > 0
    assert not elsewhere.exists()
