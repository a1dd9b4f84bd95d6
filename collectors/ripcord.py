"""Ripcord: what is critical is found on the node itself while the bus is away, and sent up the tree at once.

The detectors (handed in: a collector imports none) also see the rows of the time when the bus is there, so that they
know what trouble is open; but then they are silent, for the central ones speak. While it is away each critical finding
is written down and reported: a gateway publishes it, or pages it and answers with receipts. When the bus is back, what
was only paged is reported again with its receipts before anything else is sent, so that nobody is paged twice.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from collectors.moment import Moment, brought_to
from collectors.ripcord_notes import Kept, Notes, Said, scope_of
from telemetry_bus.errors import BusUnavailable, FrameError
from telemetry_bus.findings import Finding, findings_frame
from telemetry_bus.frames import Frame, FrameMaker, encode
from telemetry_bus.outlet import Report
from telemetry_bus.schemas import FindingState, Severity
from telemetry_bus.topics import Topic

RECENT_SECONDS = 4.0
"""What was found so shortly before it turned out that the bus is away (which takes a frame up to 3 s) may not have been
read by anybody: it is said as if the bus had been away. Where somebody had, it is the same finding of the same id."""
REPORT_SECONDS_MAX = 25.0
"""A gateway tries its upstream, then waits for the receivers' answers: it has 20 s for that."""
RETRY_FIRST_SECONDS = 0.2
RETRY_MAX_SECONDS = 2.0
"""A gateway that comes back is asked within two seconds, by each of its nodes at a moment of its own."""

_log = logging.getLogger(__name__)


class LocalDetector(Protocol):
    """What a collector needs of a detector."""

    @property
    def topics(self) -> frozenset[Topic]:
        """The topics whose frames it wants."""
        ...

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Take a frame that this node has made."""
        ...

    def tick(self, now: float) -> Sequence[Finding]:
        """Take the time (UTC seconds, this node's clock)."""
        ...

    def remember(self, finding: Finding, now: float) -> None:
        """Take up trouble that was said before this process started."""
        ...


class Ripcord:
    """Use it in ``async with``, in a folder that this process has for itself (the spool's).

    ``report`` is an outlet's, ``moment`` the spool's. Called from one event loop; :meth:`seen` and :meth:`tick` never
    wait.
    """

    def __init__(
        self,
        detectors: Sequence[LocalDetector],
        report: Callable[[bytes], Awaitable[Report]],
        moment: Callable[[], Moment],
        *,
        node: str,
        folder: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._detectors, self._report, self._moment, self._sleep = tuple(detectors), report, moment, sleep
        self._node, self._notes = node, Notes(folder / "findings.json")
        self._maker = FrameMaker(f"{node}/ripcord")
        self._news = asyncio.Event()
        self._reporting = asyncio.Lock()
        self.reports = {"published": 0, "paged": 0, "failed": 0, "refused": 0}
        """Reports by outcome; they only grow."""
        self.detector_errors = 0
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Take up what the process before has written down, and begin to report what is not said yet."""
        await asyncio.to_thread(self._notes.load)
        now = self._moment().wall
        for kept in self._notes.still_open():
            for detector in self._detectors:
                with self._counting():
                    detector.remember(kept.finding, now)
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self._report_for_ever(), name="ripcord")
        self._news.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; what is not said is on disk."""
        assert self._task is not None
        assert self._group is not None
        self._task.cancel()
        await self._group.__aexit__(kind, error, trace)
        await self._write()

    @property
    def unpublished(self) -> int:
        """Findings that are not on the bus yet."""
        return sum(kept.said is not Said.PUBLISHED for kept in self._notes)

    def seen(self, topic: Topic, frame: Frame, *, away: bool) -> None:
        """Let the detectors look at what this node sends."""
        for detector in self._detectors:
            if topic in detector.topics:
                with self._counting():
                    self._take(detector.observe(frame), away=away)

    def tick(self, now: float, *, away: bool) -> None:
        """Let time pass for the detectors."""
        for detector in self._detectors:
            with self._counting():
                self._take(detector.tick(now), away=away)

    def doubt(self) -> None:
        """The bus may be away: what was found a moment ago is said here too."""
        now = self._moment()
        for kept in list(self._notes):
            if kept.said is Said.PUBLISHED and not kept.ours and now.passed_since(kept.found)[0] < RECENT_SECONDS:
                self._notes.put(replace(kept, boot=self._maker.boot, seq=self._number(), said=Said.NOT_YET, ours=True))
                self._news.set()

    async def publish_kept(self) -> bool:
        """The bus is back: report everything that is not on it, oldest first; False if some is still not."""
        for kept in list(self._notes):
            if kept.said is not Said.PUBLISHED and not await self._tell(kept):
                break
        await self._write()
        return not self.unpublished

    def _take(self, findings: Iterable[Finding], *, away: bool) -> None:
        for finding in findings:
            if finding.severity is not Severity.CRITICAL or finding.id in self._notes:
                continue
            over = finding.state is FindingState.RESOLVED
            if away or (over and self._notes.ours(scope_of(finding))):
                self._keep(finding, Said.NOT_YET)
                self._news.set()
            elif over:
                self._notes.close(scope_of(finding))
                self._news.set()
            else:
                self._keep(finding, Said.PUBLISHED)
                self._news.set()

    def _keep(self, finding: Finding, said: Said) -> None:
        # What the central detectors publish has a number of theirs; ours is given when it becomes ours to say.
        seq = self._number() if said is Said.NOT_YET else self._maker.seq
        self._notes.put(Kept(finding, self._maker.boot, seq, self._moment(), said, said is Said.NOT_YET))

    def _number(self) -> int:
        """The next number of this process's frames, taken: a reader drops the second frame of one number."""
        number, self._maker.seq = self._maker.seq, self._maker.seq + 1
        return number

    async def _report_for_ever(self) -> None:
        wait = RETRY_FIRST_SECONDS
        while True:
            await self._news.wait()
            self._news.clear()
            await self._write()
            while (kept := self._notes.first(Said.NOT_YET)) is not None:
                if await self._tell(kept):
                    wait = RETRY_FIRST_SECONDS
                    await self._write()
                    continue
                await self._sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, RETRY_MAX_SECONDS)

    async def _tell(self, kept: Kept) -> bool:
        """Report a finding; False if nobody took it."""
        async with self._reporting:
            current = self._notes.get(kept.finding.id)
            if current is None or current.said is Said.PUBLISHED:
                return True
            try:
                async with asyncio.timeout(REPORT_SECONDS_MAX):
                    report = await self._report(self._payload(current))
            except (BusUnavailable, TimeoutError) as error:
                self.reports["failed"] += 1
                _log.warning("a critical finding is kept, nobody took it yet: %s (%s)", current.finding.title, error)
                return False
            except FrameError as error:
                self.reports["refused"] += 1
                _log.error("a critical finding was refused for good: %s: %s", current.finding.title, error)
                self._notes.drop(current.finding.id)
                return True
            return self._told(current, report)

    def _told(self, kept: Kept, report: Report) -> bool:
        if report.published:
            self.reports["published"] += 1
            self._notes.put(replace(kept, said=Said.PUBLISHED))
            if kept.finding.state is FindingState.RESOLVED:
                self._notes.close(scope_of(kept.finding))
            return True
        if not report.receipts:
            self.reports["failed"] += 1
            return False
        again = kept.said is Said.PAGED
        self.reports["paged"] += not again
        receipts = tuple(dict.fromkeys((*kept.receipts, *report.receipts)))
        self._notes.put(replace(kept, said=Said.PAGED, receipts=receipts))
        return not again

    def _payload(self, kept: Kept) -> bytes:
        """The finding as a frame under the number that it got at first: sent twice, it counts once."""
        ripcord = {"receipts": list(kept.receipts), "node": self._node, "while_away": True}
        finding = replace(kept.finding, evidence={**kept.finding.evidence, "ripcord": ripcord})
        maker = FrameMaker(self._maker.source, kept.boot)
        maker.seq = kept.seq
        now = self._moment()
        _, step = now.passed_since(kept.found)
        if step and finding.onset_time is not None:
            finding = replace(finding, onset_time=finding.onset_time + step)
        return encode(brought_to(findings_frame(maker, [finding], kept.found.wall), kept.found, now))

    async def _write(self) -> None:
        try:
            await self._notes.write()
        except OSError as error:
            _log.error("findings are kept in memory only: %s", error)

    def _counting(self) -> "_Counting":
        return _Counting(self)


class _Counting(suppress):
    """Whatever a detector does wrong is logged and counted, and costs no row."""

    def __init__(self, ripcord: Ripcord) -> None:
        super().__init__(Exception)
        self._ripcord = ripcord

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self._ripcord.detector_errors += 1
            _log.error("a detector of this node failed", exc_info=error)
        return super().__exit__(kind, error, trace)
