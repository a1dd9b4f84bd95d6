"""Who tells a job to stop: from critical findings to signed verdicts, at most one a job and day.

A verdict is issued only for what the job's own ranks can confirm, numbers that are not finite; what statistics suspect
asks a person. It is off unless the configuration turns it on, and the job heeds it only if it asked for that at launch.
The log is the memory: what was issued in the last day is read back from the bus, so that neither a restart nor a second
copy of the alert role issues another.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from alerting.intake import FindingsIntake
from alerting.waits import Waits
from telemetry_bus.bus import AtTime, Bus, Record
from telemetry_bus.errors import BusError
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import FrameMaker
from telemetry_bus.intake import Intake
from telemetry_bus.publisher import publish_frame
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.schemas import FindingState, Severity
from telemetry_bus.topics import Topic
from telemetry_bus.verdicts import Action, Verdict, nonce_of, signed, verdict_frame, verdict_key, verdicts_in

DAY_SECONDS = 86_400.0
ONE_STOP_SECONDS = DAY_SECONDS
"""Between two verdicts on a job. A job that is sick again after its automatic restart asks a person."""
FRESH_SECONDS = 120.0
"""A finding that was said longer ago is left to people: the job has gone on, or stopped, by itself."""
JOBS_MAX = 65_536
"""Jobs whose last stop is remembered, some 100 bytes each. There are not so many that go bad in a day."""

_log = logging.getLogger(__name__)


class StopPolicy:
    """Which findings stop a job. Pure: time comes in, verdicts come out."""

    def __init__(self) -> None:
        self._stopped: dict[str, float] = {}
        self._nonces: dict[str, None] = {}

    def issued(self, verdict: Verdict) -> None:
        """Remember a verdict that is on the bus, whoever issued it."""
        self._stopped[verdict.job] = max(verdict.time, self._stopped.get(verdict.job, 0.0))
        self._nonces[verdict.nonce] = None
        for memory in (self._stopped, self._nonces):
            while len(memory) > JOBS_MAX:
                del memory[next(iter(memory))]

    def asks_for_stop(self, finding: Finding, now: float) -> bool:
        """Whether ``finding`` stops its job at ``now`` (UTC seconds)."""
        names_place = None not in (finding.job, finding.attempt, finding.step)
        is_plain = finding.kind is FindingKind.NONFINITE and finding.severity is Severity.CRITICAL
        if not (names_place and is_plain and finding.state is FindingState.FIRING) or finding.simulated:
            return False
        if now - finding.time > FRESH_SECONDS or nonce_of(finding.id) in self._nonces:
            return False
        return now - self._stopped.get(finding.job or "", -ONE_STOP_SECONDS) >= ONE_STOP_SECONDS


@dataclass(slots=True)
class VerdictStats:
    """Counters for ``/metrics``."""

    issued: int = 0
    held_back: int = field(default=0)
    """Critical findings of this kind that stopped nothing: not the job's first in a day, too old, or without a step."""


class VerdictIssuer:
    """Reads findings and publishes verdicts, until cancelled. ``secret`` is the installation's; ``source`` names who
    publishes."""

    def __init__(self, bus: Bus, clock: Clock, secret: Secret[bytes], source: str) -> None:
        self._bus, self._clock, self._secret = bus, clock, secret
        self._maker = FrameMaker(source)
        self._policy = StopPolicy()
        self._findings, self._verdicts = FindingsIntake(), Intake()
        self.stats = VerdictStats()

    async def run(self) -> None:
        """Work until cancelled. While the bus is away nothing is issued; then what is still fresh is."""
        waits = Waits()
        while True:
            try:
                await self._read_back()
                start = AtTime(self._clock.now() - FRESH_SECONDS)
                async with self._bus.subscribe([Topic.VERDICTS, Topic.FINDINGS], start) as subscription:
                    async for records in subscription:
                        waits.reset()
                        await self._take(records)
            except BusError as error:
                _log.warning("no verdict can be issued now: %s", error)
            await waits.wait()

    async def _read_back(self) -> None:
        """Learn what was issued in the last day."""
        ends = await self._bus.ends(Topic.VERDICTS)
        if not sum(ends.values()):
            return
        start = AtTime(self._clock.now() - DAY_SECONDS)
        async with self._bus.subscribe([Topic.VERDICTS], start) as subscription:
            if await subscription.caught_up():
                return
            async for records in subscription:
                self._learn(records)
                if await subscription.caught_up():
                    return

    def _learn(self, records: Sequence[Record]) -> None:
        for record in records:
            taken = self._verdicts.take(record)
            if taken.frame is None:
                continue
            try:
                for verdict in verdicts_in(taken.frame):
                    self._policy.issued(verdict)
            except ValueError as error:
                _log.warning("a verdict on the bus cannot be read: %s", error)

    async def _take(self, records: Sequence[Record]) -> None:
        self._learn([record for record in records if record.topic is Topic.VERDICTS])
        for finding in self._findings.take([each for each in records if each.topic is Topic.FINDINGS]).findings:
            now = self._clock.now()
            if self._policy.asks_for_stop(finding, now):
                await self._issue(finding, now)
            elif finding.kind is FindingKind.NONFINITE and finding.state is FindingState.FIRING:
                self.stats.held_back += 1

    async def _issue(self, finding: Finding, now: float) -> None:
        assert finding.job is not None
        assert finding.attempt is not None
        assert finding.step is not None
        step = finding.step if finding.onset_step is None else finding.onset_step
        key = Secret(verdict_key(self._secret.reveal(), finding.job))
        verdict = signed(
            key,
            job=finding.job,
            attempt=finding.attempt,
            step=step,
            action=Action.STOP,
            nonce=nonce_of(finding.id),
            now=now,
        )
        await publish_frame(self._bus, Topic.VERDICTS, verdict_frame(self._maker, verdict))
        self._policy.issued(verdict)
        self.stats.issued += 1
        _log.warning("job %s, attempt %s is told to stop: not finite since step %d", finding.job, finding.attempt, step)
