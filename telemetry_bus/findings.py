"""A finding: anything that a detector says. It travels as a row of ``finding/1``."""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import FindingState, Severity

NAMESPACE = uuid.UUID("6f0c3c52-8d9b-5c55-9a51-4e414e54554b")
"""The UUIDv5 namespace of everything that Nantucket names by what it is about."""
DEPTH_MAX = 64
"""Levels of the JSON in a finding; ours have three. What can just be read cannot always be written again, deeper in the
stack: it would end whoever tries."""


class FindingKind(StrEnum):
    """The class of trouble. It is part of the paging key, so it says what is wrong, never where."""

    NONFINITE = "nonfinite"
    """A loss, gradient norm or gradient element that is NaN or infinite."""
    LOSS_SPIKE = "loss_spike"
    """A loss far above what the run has done before."""
    STALL = "stall"
    """A job takes no step any more."""
    SILENT_SOURCE = "silent_source"
    """A collector that has sent before sends no frames."""
    SILENT_REGION = "silent_region"
    """No frame of a region comes any more: it is cut off."""
    MISSING_FRAMES = "missing_frames"
    """Frames of a source were made but have not arrived."""
    LAG = "lag"
    """Nantucket reads its own bus too slowly."""
    BUSY_WITHOUT_ROWS = "busy_without_rows"
    """GPUs work, but no training job reports."""
    CLOCK_OFFSET = "clock_offset"
    """A machine's clock is far from the bus's."""
    REFUSED_FRAMES = "refused_frames"
    """Frames or rows were refused and lie in the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause. ``confidence`` is 0 to 1; ``evidence`` says in words what it rests on."""

    cause: str
    confidence: float
    evidence: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a detector says of one job, node or source. ``None`` is "not known", never zero.

    ``subject`` tells apart what may go wrong several times over within one job or node at once (a source, a topic, a
    reason of refusal): trouble of another subject is another incident. ``time`` and ``onset_time`` are event time, UTC
    seconds. ``about`` (see :func:`finding_id`) has made ``id``.
    """

    id: str
    time: float
    detector: str
    kind: FindingKind
    state: FindingState
    severity: Severity
    title: str
    message: str = ""
    region: str | None = None
    job: str | None = None
    attempt: str | None = None
    node: str | None = None
    gpu: int | None = None
    uuid: str | None = None
    rank: int | None = None
    parameter: str | None = None
    step: int | None = None
    onset_step: int | None = None
    onset_time: float | None = None
    world_size: int | None = None
    ranks_affected: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    causes: Sequence[Cause] = ()
    simulated: bool = False
    subject: str | None = None


def finding_id(*about: object) -> str:
    """The id of the finding about ``about``: the same whenever and wherever it is found again."""
    return str(uuid.uuid5(NAMESPACE, "finding\n" + "\n".join("" if part is None else str(part) for part in about)))


def findings_frame(maker: FrameMaker, findings: Sequence[Finding], now: float) -> Frame:
    """One frame of ``findings`` (not empty)."""
    columns: dict[str, list[Any]] = {f.name: [getattr(item, f.name) for item in findings] for f in fields(Finding)}
    for name in ("kind", "state", "severity"):
        columns[name] = [str(value) for value in columns[name]]
    columns["evidence"] = [dumps(item.evidence) for item in findings]
    columns["causes"] = [
        dumps([{"cause": c.cause, "confidence": c.confidence, "evidence": c.evidence} for c in item.causes])
        for item in findings
    ]
    return maker.make("finding/1", columns, now)


def findings_in(frame: Frame) -> list[Finding]:
    """The findings of a ``finding/1`` frame. A ``ValueError`` names the row that cannot be read."""
    times, onsets = frame.times().tolist(), frame.times("onset_time").tolist()
    found = []
    for row, values in enumerate(frame.batch.drop_columns(["time", "onset_time"]).to_pylist()):
        try:
            values["kind"] = FindingKind(values["kind"])
            values["state"] = FindingState(values["state"])
            values["severity"] = Severity(values["severity"])
            values["evidence"] = _json(values["evidence"], dict)
            values["causes"] = tuple(Cause(**cause) for cause in _json(values["causes"], list))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"row {row} of a finding/1 frame: {error}") from error
        values["message"] = values["message"] or ""
        onset = onsets[row]
        found.append(Finding(time=times[row], onset_time=None if math.isnan(onset) else onset, **values))
    return found


def _json(text: str | None, kind: type) -> Any:
    value = kind() if text is None else json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"expected a JSON {kind.__name__}, found {text!r}")
    if _is_deep(value):
        raise ValueError(f"expected JSON of at most {DEPTH_MAX} levels, found more")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
