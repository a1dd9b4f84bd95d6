"""What ``nantucket doctor`` says of one thing that it looked at."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from app.settings import Settings
from telemetry_bus.runtime.clock import Clock


class Verdict(StrEnum):
    """How one check came out."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but somebody should know."""
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at; ``remedy`` says what to do where it is a fault."""

    check: str
    verdict: Verdict
    found: str
    remedy: str | None = None


Check = Callable[[Settings, Clock], Awaitable[Checked | Sequence[Checked]]]
