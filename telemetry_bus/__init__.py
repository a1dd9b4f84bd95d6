"""The telemetry bus: frames, the log that carries them, and the one language that every role speaks."""

from telemetry_bus.bus import AtOffset, AtTime, Bus, Earliest, Latest, Record, Start, Subscription, open_bus
from telemetry_bus.errors import (
    BusClosed,
    BusError,
    BusUnavailable,
    FrameError,
    FrameFault,
    FrameRefused,
    InaccessibleFolder,
    InvalidPayload,
    OutletFull,
    UnknownBus,
    UnreadableLog,
    UnsuitableFolder,
    UnusableCredentials,
)
from telemetry_bus.findings import Cause, Finding, FindingKind, finding_id, findings_frame, findings_in
from telemetry_bus.frames import Frame, FrameMaker, Run, decode, encode, merge
from telemetry_bus.intake import Intake, Refusal, Taken
from telemetry_bus.ledger import SourceLedger
from telemetry_bus.outlet import Outlet, OutletOptions, Report, open_outlet
from telemetry_bus.schemas import SCHEMAS, EventKind, FindingState, Scope, Severity
from telemetry_bus.topics import TELEMETRY, TOPIC_SCHEMAS, Topic

__all__ = [
    "SCHEMAS",
    "TELEMETRY",
    "TOPIC_SCHEMAS",
    "AtOffset",
    "AtTime",
    "Bus",
    "BusClosed",
    "BusError",
    "BusUnavailable",
    "Cause",
    "Earliest",
    "EventKind",
    "Finding",
    "FindingKind",
    "FindingState",
    "Frame",
    "FrameError",
    "FrameFault",
    "FrameMaker",
    "FrameRefused",
    "InaccessibleFolder",
    "Intake",
    "InvalidPayload",
    "Latest",
    "Outlet",
    "OutletFull",
    "OutletOptions",
    "Record",
    "Refusal",
    "Report",
    "Run",
    "Scope",
    "Severity",
    "SourceLedger",
    "Start",
    "Subscription",
    "Taken",
    "Topic",
    "UnknownBus",
    "UnreadableLog",
    "UnsuitableFolder",
    "UnusableCredentials",
    "decode",
    "encode",
    "finding_id",
    "findings_frame",
    "findings_in",
    "merge",
    "open_bus",
    "open_outlet",
]
