"""Where verdicts meet the jobs of this node: each goes to the processes of its job and attempt, and to nobody else."""

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from telemetry_bus.errors import FrameError
from telemetry_bus.frames import decode
from telemetry_bus.verdict_feed import VerdictFeed
from telemetry_bus.verdicts import Verdict, verdicts_in

_log = logging.getLogger(__name__)

Say = Callable[[Mapping[str, Any]], None]
"""Says a message to one process; it does not wait."""


class VerdictDesk:
    """Passes what ``feed`` hears to the SDKs that are connected, and what is still valid to one that comes.

    It does not check signatures, for it has no key: a job believes only what is signed for it.
    """

    def __init__(self, feed: VerdictFeed) -> None:
        self._feed = feed
        self._present: dict[Hashable, tuple[str, str, Say]] = {}
        self.passed_on = 0
        """Verdicts said to processes."""
        self.unreadable = 0
        """Payloads that are no verdict."""
        feed.to(self._hear)

    def joined(self, owner: Hashable, job: str, attempt: str, say: Say) -> None:
        """``owner`` is a process of this attempt. It hears what is still valid at once."""
        self._present[owner] = (job, attempt, say)
        for payload in self._feed.still_valid():
            for verdict in self._read(payload):
                self._pass_on(owner, verdict)

    def left(self, owner: Hashable) -> None:
        """It has hung up, or never came."""
        self._present.pop(owner, None)

    def _hear(self, payload: bytes) -> None:
        for verdict in self._read(payload):
            for owner in list(self._present):
                self._pass_on(owner, verdict)

    def _pass_on(self, owner: Hashable, verdict: Verdict) -> None:
        job, attempt, say = self._present[owner]
        if (job, attempt) == (verdict.job, verdict.attempt):
            self.passed_on += 1
            say(verdict.body())

    def _read(self, payload: bytes) -> list[Verdict]:
        try:
            return verdicts_in(decode(payload, frozenset({"verdict/1"})))
        except (FrameError, ValueError) as error:
            self.unreadable += 1
            _log.warning("what came as a verdict is none: %s", error)
            return []
