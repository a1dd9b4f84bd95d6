"""What the documents say of the bus is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from telemetry_bus import FrameFault, frames

REPOSITORY = Path(__file__).resolve().parents[2]
FAILURE_MODES = REPOSITORY / "docs" / "failure-modes.md"


def test_every_failure_mode_names_a_test_that_exists() -> None:
    """A row without a test is a hope."""
    rows = [line for line in FAILURE_MODES.read_text().splitlines() if line.startswith("| ") and "| test |" not in line]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w./]+)::(\w+)`", row)
        assert named, f"no test in the row: {row}"
        for file, function in named:
            tree = ast.parse((REPOSITORY / file).read_text())
            functions = {
                node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert function in functions, f"{file} has no {function}"


def test_every_reason_for_a_refusal_is_in_the_description_of_frames() -> None:
    """The labels of the metric are explained in one place."""
    described = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs" / "frames.md").read_text(), re.MULTILINE)
    assert sorted(described) == sorted(FrameFault)


def test_the_limits_in_the_description_of_frames_are_those_of_the_code() -> None:
    """By the constant's name."""
    text = (REPOSITORY / "docs" / "frames.md").read_text()
    units = {"MiB": 1024 * 1024, "KiB": 1024, "": 1}
    limits = re.findall(r"^\| [\w ]+ \| ([\d,]+) ?(\w*) \| `(\w+_MAX)` \|", text, re.MULTILINE)
    assert len(limits) == 5
    for number, unit, constant in limits:
        assert int(number.replace(",", "")) * units[unit] == getattr(frames, constant)
