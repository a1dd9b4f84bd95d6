"""The page about collectors names everything that there is, and nothing that there is not."""

import re
from pathlib import Path

import pytest

from collectors.errors import FieldFailure
from collectors.frame_queue import QUEUE_BYTES_MAX, QUEUE_FRAMES_MAX
from collectors.nvml.source import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, READ_DEADLINE_SECONDS
from collectors.registry import SOURCES
from collectors.simulated import FaultKind

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "collectors.md").read_text()


def table(header: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is `header`: the name in the first cell, and the other cells."""
    lines = PAGE.split(f"\n| {header} |", 1)[1].splitlines()[2:]
    rows = [line for line in lines[: lines.index("") if "" in lines else len(lines)] if line.startswith("| `")]
    return {
        cells[0].strip(" `"): [c.strip() for c in cells[1:]] for cells in (row.strip("|").split("|") for row in rows)
    }


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("name", list(SOURCES)),
        ("reason", [reason.value for reason in FieldFailure]),
        ("kind", [kind.value for kind in FaultKind]),
    ],
    ids=["sources", "reasons", "faults"],
)
def test_a_table_of_the_page_lists_exactly_what_there_is(header: str, names: list[str]) -> None:
    """A name that is added or taken away is so in the docs as well."""
    assert list(table(header)) == names


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    """Numbers in prose do not drift."""
    text = re.sub(r"\s+", " ", PAGE)
    assert f"within {READ_DEADLINE_SECONDS:g} s" in text
    assert f"after {BACKOFF_FIRST_SECONDS:g} s, 2 s, 4 s, ... up to {BACKOFF_MAX_SECONDS:g} s" in text
    bounds = f"At most {QUEUE_FRAMES_MAX:,} frames and {QUEUE_BYTES_MAX >> 20} MiB wait"
    assert bounds in text
