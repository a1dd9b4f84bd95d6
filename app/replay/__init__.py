"""Recorded runs through the very same detectors: what would they have said, and who would have been woken?"""

from app.replay.command import replay_command
from app.replay.errors import ReplayError, UnreadableRun
from app.replay.readers import Run, read_run
from app.replay.run import ReplayFinding, ReplayResult, replay_run

__all__ = [
    "ReplayError",
    "ReplayFinding",
    "ReplayResult",
    "Run",
    "UnreadableRun",
    "read_run",
    "replay_command",
    "replay_run",
]
