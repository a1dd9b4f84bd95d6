"""NVML as a source: one child process, asked once a reading, killed when it does not answer, and started again."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from collectors.errors import DriverNotFound, DriverRefused, FieldFailure, SourceClosed
from collectors.gpu_users import GpuUsers
from collectors.nvml.process import Child, ChildGone
from collectors.nvml.rows import Parts, gpu_rows, nvlink_rows
from collectors.nvml.watch import SOURCE, GpuWatch, identities
from collectors.profiling import ProfilingSwitch
from collectors.source import EventRow, SourceReading
from collectors.xids import GpuIdentity, Origin, XidLedger
from telemetry_bus.runtime.clock import Clock

READ_DEADLINE_SECONDS = 3.0
"""The child leaves a GPU that hangs behind and answers within 2.2 s even where all eight do
(:mod:`collectors.nvml.patience`): past this the child itself is in trouble."""
OPEN_SECONDS = 5.0
"""Opening waits no longer for a driver that does not answer: the node's other sources begin without it."""
START_DEADLINE_SECONDS = 60.0
"""Without persistence mode the driver wakes every GPU first, some seconds each."""
ALL_HANG_SECONDS = 10.0
"""For so long a process whose every GPU hangs is kept, before another is tried in its place."""
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 60.0
EVERY_FIELD = "*"
"""The field of a failure that took a whole reading."""
XIDS_FIELD = "xids"
"""The field under which it is counted that the driver tells no XIDs."""


@dataclass(frozen=True, slots=True)
class NvmlGpus:
    """The GPUs of this machine, read through NVML as ``node``.

    ``environment`` is added to that of the child process, such as ``LD_LIBRARY_PATH`` where the driver's library is not
    on the loader's path. ``fast`` names the metrics that are read at every reading, where those come faster than once a
    second; empty: all that are read each second. ``profile`` says whether profiling is read at all, ``profiling`` is
    the switch that pauses it. ``xids`` is told of XIDs, ``users`` every 10 s of the processes that the driver lists.
    """

    node: str
    read_deadline_seconds: float = READ_DEADLINE_SECONDS
    open_seconds: float = OPEN_SECONDS
    start_deadline_seconds: float = START_DEADLINE_SECONDS
    backoff_first_seconds: float = BACKOFF_FIRST_SECONDS
    environment: Mapping[str, str] = field(default_factory=dict)
    fast: tuple[str, ...] = ()
    profile: bool = True
    profiling: ProfilingSwitch | None = None
    xids: XidLedger | None = None
    users: GpuUsers | None = None

    def build(self, clock: Clock) -> "NvmlSource":
        """The source, not yet open."""
        return NvmlSource(self, clock)


class NvmlSource:
    """A running :class:`NvmlGpus`. Opening raises :class:`DriverNotFound` or :class:`DriverRefused`."""

    name = SOURCE
    period_seconds: float | None = None

    def __init__(self, config: NvmlGpus, clock: Clock) -> None:
        self.config = config
        self.urgent: asyncio.Event | None = asyncio.Event()
        self._clock = clock
        self._open = False
        self._child: Child | None = None
        self._greeted = False
        self._started_at = 0.0
        self._stuck: Child | None = None
        self._retry_at = 0.0
        self._backoff = config.backoff_first_seconds
        self._silent_because = ""
        self._all_hang_since: float | None = None
        self._watch = GpuWatch(config.node)
        self._xids = XidLedger(config.node) if config.xids is None else config.xids
        self._heard: list[EventRow] = []
        self._no_xids: list[str] = []
        self._count: int | None = None
        self.starts = 0
        """How often the child was started."""

    @property
    def child_pid(self) -> int | None:
        """The process that talks to the driver, ``None`` while there is none."""
        return None if self._child is None else self._child.pid

    async def __aenter__(self) -> Self:
        """Start the child and learn what is there; for a driver that does not answer others do not wait."""
        try:
            await self._start()
            await self._greet(self.config.open_seconds)
            self._open = True
        except ChildGone as error:
            if not error.hung:
                raise DriverRefused(str(error)) from error
            self._tell_silence(f"{error} at its start", "hung")
            self._open = True
        finally:
            if not self._open:
                await self.__aexit__(None, None, None)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End the child."""
        self._open = False
        child, self._child = self._child, None
        if child is not None:
            await child.close()

    async def read(self, now: float) -> SourceReading:
        """All GPUs once. While the driver does not answer there are no rows and one counted failure a reading."""
        if not self._open:
            raise SourceClosed(self.name)
        try:
            answer = await self._answer(now)
        except (ChildGone, DriverNotFound, DriverRefused) as error:
            await self._give_up(error)
            return SourceReading(None, self._events(now), Counter({(EVERY_FIELD, FieldFailure.NO_ANSWER): 1}))
        parts, hung = answer["gpus"], answer.get("hung", [])
        self._watch.read(parts, hung)
        await self._see_whether_all_hang(parts, hung)
        self._tell_users(parts, now)
        if answer.get("count", self._count) != self._count:
            await self._start_anew()  # there are others than before: who they are is learned at the start
        return self._reading(parts, hung, now)

    def unreadable(self) -> Sequence[str]:
        """Why the driver gives nothing, which GPUs it does not reach, and what it does not tell."""
        silent = [self._silent_because] if self._silent_because else []
        return [*silent, *self._watch.troubles(), *(f"the driver tells no XIDs: {why}" for why in self._no_xids)]

    async def _answer(self, now: float) -> dict[str, Any]:
        if self._child is None:
            await self._restart()
        assert self._child is not None
        if not self._greeted:
            await self._greet(self.config.read_deadline_seconds)
        paused = self.config.profiling is not None and self.config.profiling.paused(now)
        profile = self.config.profile and not paused
        return await self._child.ask(now, self.config.read_deadline_seconds, profile=profile)

    async def _see_whether_all_hang(self, parts: Parts, hung: Sequence[int]) -> None:
        """Where no GPU answers, another process may be answered: what hangs may be a lock of the library's."""
        if parts or not hung:
            self._answered()
            self._all_hang_since = None
            return
        now = self._clock.monotonic()
        self._all_hang_since = now if self._all_hang_since is None else self._all_hang_since
        self._tell_silence("the driver answers for none of its GPUs", "hung")
        if now - self._all_hang_since >= ALL_HANG_SECONDS:
            self._all_hang_since = None
            await self._give_up(ChildGone("the driver answers for none of its GPUs", hung=True))

    async def _start(self) -> None:
        self.starts += 1
        self._greeted, self._no_xids = False, []
        self._child = await Child.start(self.config.environment, self.config.fast, self._hear)
        self._started_at = self._clock.monotonic()

    async def _greet(self, seconds: float) -> None:
        assert self._child is not None
        hello = await self._child.greeted(seconds)
        if not hello["ready"]:
            child, self._child = self._child, None
            await child.close()
            raise (DriverNotFound if hello["library_missing"] else DriverRefused)(hello["message"])
        self._greeted, self._count = True, len(hello["gpus"])
        self._xids.know([GpuIdentity(*known) for known in identities(hello)])
        self._watch.started(hello)

    async def _restart(self) -> None:
        if self._stuck is not None and not self._stuck.dead:
            raise ChildGone(f"process {self._stuck.pid} is stuck in the driver and cannot be killed", hung=True)
        self._stuck = None
        if (left := self._retry_at - self._clock.monotonic()) > 0:
            raise ChildGone(f"{self._silent_because}; the next try is in {left:.1f} s", hung=False)
        await self._start()

    async def _start_anew(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.close()
        await self._start()

    async def _give_up(self, error: Exception) -> None:
        hung = isinstance(error, ChildGone) and error.hung
        waits_for_start = self._child is not None and not self._greeted and hung
        if waits_for_start and self._clock.monotonic() - self._started_at < self.config.start_deadline_seconds:
            self._tell_silence(f"{error} at its start", "hung")
            return
        child, self._child = self._child, None
        waiting = child is None and self._clock.monotonic() < self._retry_at
        if child is not None and not await child.kill():
            self._stuck = child
        delay = self._backoff
        if not waiting:
            self._retry_at = self._clock.monotonic() + self._backoff
            self._backoff = min(2.0 * self._backoff, BACKOFF_MAX_SECONDS)
        words = f"{error}; its reader is started again in {delay:g} s"
        self._tell_silence(words, "hung" if hung else "died", str(error))

    def _tell_silence(self, words: str, state: str, because: str | None = None) -> None:
        if not self._silent_because:
            self._silent_because = because or words
            self._watch.silent(words, state)

    def _answered(self) -> None:
        self._backoff = self.config.backoff_first_seconds
        if self._silent_because:
            self._watch.silent("the driver answers again", "answers")
            self._silent_because = ""

    def _hear(self, said: Mapping[str, Any]) -> None:
        """The child has told of an XID, or of why there will be none."""
        if "xids" in said:
            self._no_xids.append(str(said["xids"]))
            return
        now = self._clock.now()
        row = self._xids.saw(Origin.NVML, now, pci=said["pci"], uuid=said["uuid"], code=said["xid"], time=now)
        if row is not None and self.urgent is not None:
            self._heard.append(row)
            self.urgent.set()

    def _events(self, now: float) -> list[EventRow]:
        heard, self._heard = self._heard, []
        return [*self._watch.take_events(), *heard, *self._xids.due(now)]

    def _reading(self, parts: Parts, hung: Sequence[int], now: float) -> SourceReading:
        failures = Counter((name, FieldFailure(why)) for part in parts for name, why in part["failures"].items())
        if hung:
            failures[EVERY_FIELD, FieldFailure.NO_ANSWER] += len(hung)
        if self._no_xids:
            failures[XIDS_FIELD, FieldFailure.UNSUPPORTED] += 1
        here = [part for part in parts if not part["lost"]]
        node = self.config.node
        return SourceReading(gpu_rows(node, here), self._events(now), failures, nvlink_rows(node, here))

    def _tell_users(self, parts: Parts, now: float) -> None:
        if (users := self.config.users) is None:
            return
        for part in parts:
            if part["uuid"] is not None and "pids" in part:
                users.saw_processes(part["uuid"], part["instance"], part["pids"], now, gpu=part["gpu"])
