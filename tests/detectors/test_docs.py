"""The documentation of the detectors is complete."""

from pathlib import Path

import pytest

from detectors import DETECTORS

TEXT = (Path(__file__).parent.parent.parent / "docs" / "detectors.md").read_text()


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_every_detector_has_a_heading(name: str) -> None:
    """Registered name and heading are one word."""
    assert f"\n## {name}\n" in TEXT
