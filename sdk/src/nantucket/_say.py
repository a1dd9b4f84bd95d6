"""What the SDK tells a person: each thing once, through ``logging.getLogger("nantucket")``."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("nantucket")
NAMES_MAX = 32
"""Values that are named as unusable in one process: more names than that would flood the job's log."""


class Voice:
    """Says a thing the first time only. It never raises, whatever a logging handler does."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._names: set[str] = set()

    def once(self, key: str, message: str, *values: object, level: int = logging.WARNING) -> None:
        """Say ``message`` unless something was said under ``key`` before."""
        if key in self._said:
            return
        self._said.add(key)
        try:
            LOGGER.log(level, "nantucket: %s", message % values)
        except Exception:  # noqa: BLE001  a training job's logging set-up is not ours; a handler of it may raise anything
            return

    def once_for(self, name: str, message: str, *values: object) -> None:
        """Say ``message`` the first time for ``name``, for at most :data:`NAMES_MAX` names."""
        if name not in self._names and len(self._names) < NAMES_MAX:
            self._names.add(name)
            self.once("name " + name, message, *values)

    def over(self, key: str) -> bool:
        """What ``key`` told of is over: it may be said once more. Return whether it had been said."""
        said = key in self._said
        self._said.discard(key)
        return said
