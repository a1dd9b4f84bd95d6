"""From an exporter's text to samples, line by line: one that cannot be read is counted, and takes no other with it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

LINE_CHARACTERS_MAX = 8 * 1024
"""A line of the exporter has some 400 characters, with the labels of a pod up to 2,000."""
LINES_MAX = 100_000
"""72 GPUs with 7 instances and 100 fields each are 50,000."""
BLANKS = frozenset(
    {
        *(float(0x7FFFFFF0 + number) for number in range(5)),
        *(float(0x7FFFFFFFFFFFFFF0 + number) for number in range(5)),
        140_737_488_355_328.0,
        *(140_737_488_355_328.0 + number for number in range(1, 5)),
    }
)
"""DCGM's marks for 'blank', 'not found', 'not supported', 'not permitted' and 'unknown', of 32 and 64 bits and of
floats (``dcgm_fields.h``). Those of 64 bits are one number as a float."""
_OPEN_METRICS_EXEMPLAR = " # {"


@dataclass(frozen=True, slots=True)
class DcgmSample:
    """One line: a name, labels with their names in small letters, a value, and when it was taken (UTC seconds)."""

    name: str
    labels: Mapping[str, str]
    value: float
    time: float | None


@dataclass(slots=True)
class DcgmText:
    """The lines of a text. ``bad`` could not be read, ``blank`` carry a mark of DCGM instead of a value, ``left_out``
    were beyond the bound."""

    samples: list[DcgmSample] = field(default_factory=list)
    bad: int = 0
    blank: int = 0
    left_out: int = 0


def read_text(body: bytes) -> DcgmText:
    """The samples of an answer. Nothing raises."""
    found = DcgmText()
    lines = body.decode("utf-8", "replace").splitlines()
    found.left_out = max(0, len(lines) - LINES_MAX)
    for line in lines[:LINES_MAX]:
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            _take(stripped, found)
    return found


def _take(line: str, found: DcgmText) -> None:
    try:
        samples = list(_parsed(line)) if len(line) <= LINE_CHARACTERS_MAX else []
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):  # what the parser raises for odd lines
        samples = []
    if not samples:
        found.bad += 1
    for sample in samples:
        if sample.value in BLANKS:
            found.blank += 1
        elif math.isinf(sample.value):
            found.bad += 1
        else:
            found.samples.append(sample)


def _parsed(line: str) -> Iterator[DcgmSample]:
    for family in text_string_to_metric_families(line.split(_OPEN_METRICS_EXEMPLAR, 1)[0] + "\n"):
        for sample in family.samples:
            labels = {name.lower(): value for name, value in sample.labels.items()}
            time = None if sample.timestamp is None else float(sample.timestamp)
            yield DcgmSample(sample.name, labels, float(sample.value), time)
