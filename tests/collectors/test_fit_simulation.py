"""The committed parameters of the simulation are those that the script fits to the recordings."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.fit_simulation import TARGET, fit, seconds_of

TOLERANCE = 0.02
"""Another build of the linear algebra may move the last kept digits."""


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of nested JSON, by its path."""
    if isinstance(value, dict):
        return {key: number for name, item in value.items() for key, number in numbers(item, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {key: number for at, item in enumerate(value) for key, number in numbers(item, f"{path}[{at}]").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


@pytest.mark.needs_shared
def test_the_committed_parameters_are_what_the_script_fits_to_the_recordings(shared_folder: Path) -> None:
    """Nobody has tuned a number by hand."""
    files = sorted((shared_folder / "data" / "gpu_telemetry").glob("*_telemetry.csv.gz"))
    committed = json.loads(TARGET.read_text())
    assert committed["provenance"]["recordings"] == [file.name for file in files]
    recordings = {file.name.removesuffix("_telemetry.csv.gz"): seconds_of(file) for file in files}
    again = numbers(fit(recordings, committed["provenance"]))
    assert again == pytest.approx(numbers(committed), rel=TOLERANCE, abs=TOLERANCE)


def test_the_parameter_file_says_where_it_is_from_and_is_no_recording() -> None:
    """It is a summary: 13 quantiles a signal and phase, not the thousands of rows behind them."""
    committed = json.loads(TARGET.read_text())
    assert {"what", "from", "recordings", "fitted", "by"} == committed["provenance"].keys()
    phases = [phase for workload in committed["workloads"].values() for phase in workload.values()]
    for phase in [committed["idle"], *phases]:
        assert {len(quantiles) for quantiles in phase["quantiles"]} == {13}
        assert not [
            value for value in phase.values() if isinstance(value, list) and len(value) > len(committed["signals"])
        ]
