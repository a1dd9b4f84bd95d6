"""Findings travel as rows, and nothing of them is lost on the way."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus import (
    Cause,
    Finding,
    FindingKind,
    FindingState,
    Frame,
    FrameMaker,
    Severity,
    decode,
    encode,
    finding_id,
    findings_frame,
    findings_in,
)

NOW = 1_700_000_000.25
TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SECONDS = st.integers(0, 2**31).map(float)
SMALL, LARGE = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
FINDINGS = st.builds(
    Finding,
    id=TEXT,
    time=SECONDS,
    detector=TEXT,
    kind=st.sampled_from(FindingKind),
    state=st.sampled_from(FindingState),
    severity=st.sampled_from(Severity),
    title=TEXT,
    message=TEXT,
    **{name: st.none() | TEXT for name in ("region", "job", "attempt", "node", "uuid", "parameter")},
    **{name: st.none() | SMALL for name in ("gpu", "rank", "world_size", "ranks_affected")},
    **{name: st.none() | LARGE for name in ("step", "onset_step")},
    onset_time=st.none() | SECONDS,
    evidence=st.dictionaries(TEXT, JSON, max_size=3),
    causes=st.lists(st.builds(Cause, TEXT, st.floats(0, 1), TEXT), max_size=3).map(tuple),
    simulated=st.booleans(),
)


def finding(**changes: Any) -> Finding:
    """A finding with only what is required."""
    required: dict[str, Any] = {
        "id": "id",
        "time": NOW,
        "detector": "nonfinite",
        "kind": FindingKind.NONFINITE,
        "state": FindingState.FIRING,
        "severity": Severity.CRITICAL,
        "title": "title",
    }
    return Finding(**{**required, **changes})


def travelled(findings: list[Finding]) -> list[Finding]:
    """The findings after they were on the bus."""
    return findings_in(decode(encode(findings_frame(FrameMaker("detect"), findings, NOW))))


@given(st.lists(FINDINGS, min_size=1, max_size=4))
def test_findings_are_read_as_they_were_said(findings: list[Finding]) -> None:
    """Every field: what is not known stays None, and zero stays zero."""
    assert travelled(findings) == findings


def test_rank_zero_is_a_rank_and_none_is_none() -> None:
    """Missing is never zero."""
    zero, none = travelled([finding(rank=0, step=0, onset_time=0.0), finding()])
    assert (zero.rank, zero.step, zero.onset_time) == (0, 0, 0.0)
    assert (none.rank, none.step, none.onset_time) == (None, None, None)


def test_a_number_that_is_not_finite_stays_one_in_the_evidence() -> None:
    """JSON has no NaN: it is a string there, and not an absence."""
    evidence = {"loss": math.nan, "norms": [math.inf, -math.inf, 0.0], "absent": None}
    (found,) = travelled([finding(evidence=evidence)])
    assert found.evidence == {"loss": "NaN", "norms": ["Infinity", "-Infinity", 0.0], "absent": None}


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("kind", "haunted"),
        ("state", "maybe"),
        ("severity", "fatal"),
        ("evidence", "[1]"),
        ("evidence", "{"),
        ("evidence", '{"a":' * 20_000),
        ("evidence", '{"a":' * 100 + "1" + "}" * 100),
        ("causes", "{}"),
        ("causes", '["why"]'),
        ("causes", '[{"reason": "x"}]'),
    ],
    ids=["kind", "state", "severity", "list", "cut", "deep", "too deep", "object", "no cause", "another key"],
)
def test_a_row_that_is_no_finding_is_named(column: str, text: str) -> None:
    """A ValueError with the row, whatever another version or another program has written."""
    frame = findings_frame(FrameMaker("detect"), [finding(), finding()], NOW)
    at = frame.batch.schema.get_field_index(column)
    cells = pa.array([frame.batch.column(at)[0].as_py(), text], pa.string())
    batch = frame.batch.set_column(at, frame.batch.schema.field(at), cells)
    with pytest.raises(ValueError, match=r"row 1 of a finding/1 frame"):
        findings_in(Frame("finding/1", batch, frame.manifest))


def test_the_id_of_a_finding_is_made_from_what_it_is_about() -> None:
    """The same for everybody who finds it, another for anything else; None is not the text "None"."""
    assert finding_id("nonfinite", "job", "a1", 7) == finding_id("nonfinite", "job", "a1", 7)
    about = [("job", 1), ("job", 2), ("job1",), ("job", None), ("job", "None"), ("jo", "b"), ()]
    assert len({finding_id(*parts) for parts in about}) == len(about)
