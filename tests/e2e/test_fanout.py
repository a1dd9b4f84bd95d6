"""The fan-out over real processes and connections: `nantucket bench fanout`, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)  # four parts, each with processes of its own, on a busy machine
def test_many_readers_cost_the_bus_what_one_costs_and_those_who_do_not_read_hold_up_nobody() -> None:
    """As many reads of the bus with forty readers as with one, and every reader that reads gets what one alone gets."""
    command = ["bench", "fanout", "--readers", "40", "--slow", "8", "--seconds", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for part in ("pages", "programs"):
        many, alone = result[part], result[part]["alone"]
        assert many["broken"] == 0
        assert many["bus_reads"] <= 2 * alone["bus_reads"]
        assert many["stamps"] >= 0.5 * alone["stamps"] * (many["readers"] - many["slow"])
