"""What can go wrong in a replay.

::

    ReplayError
    └── UnreadableRun           a file that holds no run that can be read

A single bad row is not an error: it is skipped, counted and said.
"""

from pathlib import Path


class ReplayError(Exception):
    """Anything that a replay refuses or cannot do."""


class UnreadableRun(ReplayError):
    """The file cannot be read as a run at all."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(f"{path}: {found}; expected {expected}.")
        self.path = path
