"""What the SDK tells a person: each thing once, through ``logging.getLogger("nantucket")``."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("nantucket")
KEYS_MAX = 64
"""Different things that may be said in one process. The keys are fixed words of this package, far fewer; the bound is
for the two kinds that carry a name (a metric's, a collector's answer), so that a log cannot be flooded by inventing
names."""


class Voice:
    """Says a thing the first time only. It never raises, whatever a logging handler does."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def once(self, key: str, message: str, *values: object, level: int = logging.WARNING) -> None:
        """Say ``message`` unless something was said under ``key`` before."""
        if key in self._said or len(self._said) >= KEYS_MAX:
            return
        self._said.add(key)
        try:
            LOGGER.log(level, "nantucket: %s", message % values)
        except Exception:  # noqa: BLE001  a training job's logging set-up is not ours; a handler of it may raise anything
            return

    def again(self, key: str) -> None:
        """Let ``key`` be said once more: what it told of is over."""
        self._said.discard(key)
