"""What was said and not taken back."""

from dataclasses import replace

from detectors.memory import OPEN_MAX, OpenFindings
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.schemas import FindingState, Severity
from tests.detectors.rows import START

FIRES = Finding(
    id="1", time=START, detector="nonfinite", kind=FindingKind.NONFINITE, state=FindingState.FIRING,
    severity=Severity.CRITICAL, title="t", job="j", attempt="1", step=7,
)  # fmt: skip
ENDS = replace(FIRES, id="2", time=START + 9, state=FindingState.RESOLVED)


def open_after(*findings: Finding, before: float = START + 100) -> list[Finding]:
    """What is open once these were said."""
    said = OpenFindings()
    said.take(findings)
    return said.of("nonfinite", before)


def test_what_fires_is_open_until_its_end() -> None:
    """And again when it fires again."""
    again = replace(FIRES, id="3", time=START + 20)
    assert open_after(FIRES) == [FIRES]
    assert open_after(FIRES, ENDS) == []
    assert open_after(FIRES, ENDS, again) == [again]


def test_a_corrected_place_is_the_same_trouble() -> None:
    """The newest finding tells it, and one end ends it."""
    corrected = replace(FIRES, id="3", node="n1", rank=3)
    assert open_after(FIRES, corrected) == [corrected]
    assert open_after(FIRES, corrected, ENDS) == []


def test_the_end_of_another_trouble_ends_nothing() -> None:
    """Another attempt, subject or kind, or what is simulated; and an end that is older than the trouble."""
    for other in (
        replace(ENDS, attempt="2"),
        replace(ENDS, subject="s"),
        replace(ENDS, kind=FindingKind.STALL),
        replace(ENDS, simulated=True),
        replace(ENDS, time=START - 1),
    ):
        assert open_after(FIRES, other) == [FIRES]


def test_what_is_said_of_later_rows_is_left_to_them() -> None:
    """They are looked at again."""
    assert open_after(FIRES, before=START) == []


def test_open_troubles_are_bounded() -> None:
    """The oldest go first, and are counted."""
    said = OpenFindings()
    said.take(replace(FIRES, job=f"j{number}") for number in range(OPEN_MAX + 3))
    assert said.forgotten == 3
    assert said.of("nonfinite", START + 1)[0].job == "j3"
