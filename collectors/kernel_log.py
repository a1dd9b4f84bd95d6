"""The kernel's log as a source: XIDs, SXIDs and what else of it a training job feels, as events, at once."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from collectors.errors import FieldFailure, SourceClosed
from collectors.kernel_files import KernelFile, Line, Lines, Position, open_kernel_file
from collectors.kernel_lines import CONDITIONS, ConditionLine, SxidLine, XidLine, read_line
from collectors.source import EventRow, SourceReading
from collectors.xids import Origin, XidLedger
from collectors.xids.flood import Flood
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind

KMSG = Path("/dev/kmsg")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
QUIET_SECONDS = 10.0
"""How often it is looked at where it says by itself that there is something."""
POLL_SECONDS = 1.0
"""How often a text file is looked at."""
LATE_SECONDS = 600.0
"""Readers refuse rows older than 15 minutes: what happened longer ago is told as of now, with the time in its detail.
That is what a collector finds that was away for hours."""
FIRST_SECONDS = 600.0
"""A collector that was never here before tells what happened in the last ten minutes, not the machine's history."""
STATE_BYTES_MAX = 4_096
SWITCHES_MAX = 1_024
"""Pairs of an NVSwitch and a code that are counted; a node has up to 18 switches."""
TEXT_MAX = 512
LOST = "kernel_log"
"""The field under which overwritten records are counted."""


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The kernel's log of ``node`` at ``path``: ``/dev/kmsg``, or a file of lines. ``state`` keeps how far it was read,
    so that a collector that is started again neither repeats nor misses an XID; without it, it begins with what is new.
    """

    node: str
    xids: XidLedger
    path: Path = KMSG
    state: Path | None = None

    def build(self, clock: Clock) -> "KernelLogSource":
        """The source, not yet open."""
        return KernelLogSource(self, clock)


class KernelLogSource:
    """A running :class:`KernelLog`. Opening raises :class:`~collectors.errors.SourceUnavailable`."""

    name = "kernel_log"

    def __init__(self, config: KernelLog, clock: Clock) -> None:
        self.config = config
        self.period_seconds: float | None = QUIET_SECONDS
        self.urgent: asyncio.Event | None = None
        self._clock = clock
        self._file: KernelFile | None = None
        self._saved: Position | None = None
        self._is_first = False
        self._floods = {name: Flood() for name in CONDITIONS}
        self._switches: dict[tuple[str, int], tuple[Flood, list[int]]] = {}
        self.lost = 0
        """Records that the kernel had overwritten before they were read."""
        self.foreign = 0
        """Records that a process has written, and not the kernel."""

    async def __aenter__(self) -> Self:
        """Open the log, and go on where the last collector stopped."""
        self._saved = await asyncio.to_thread(_load, self.config.state)
        self._is_first = self._saved is None
        boot = await asyncio.to_thread(_boot_id)
        self._file = await asyncio.to_thread(open_kernel_file, self.config.path, self._saved, boot)
        self.config.xids.reads_kernel_log = True
        if self._file.descriptor is not None:
            self.urgent = asyncio.Event()
            self._listen()
        else:
            self.period_seconds = POLL_SECONDS
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Write down how far it was read, and close it."""
        file, self._file = self._file, None
        if file is None:
            return
        self.config.xids.reads_kernel_log = False
        self._stop_listening(file)
        await asyncio.to_thread(self._save, file.position())
        file.close()

    async def read(self, now: float) -> SourceReading:
        """What was written since the last reading."""
        if self._file is None:
            raise SourceClosed(self.name)
        # What the reading before has told was taken by the agent: it need not be told again after a crash.
        await self._save_if_moved(self._file.position())
        lines = await self._look(self._file, now)
        rows = [row for line in lines.found if (row := self._row(line, now)) is not None]
        rows += self.config.xids.due(now)
        self.lost += lines.lost
        self.foreign += lines.foreign
        if lines.more and self.urgent is not None:
            self.urgent.set()
        else:
            self._listen()
        failures = Counter({(LOST, FieldFailure.LOST): lines.lost} if lines.lost else {})
        return SourceReading(None, rows, failures)

    def unreadable(self) -> Sequence[str]:
        """What was lost, and what was not believed."""
        said = []
        if self.lost:
            said.append(f"{self.lost} records of the kernel's log were overwritten before they were read")
        if self.foreign:
            said.append(f"{self.foreign} records were written there by a process, and were not believed")
        return said

    async def _look(self, file: KernelFile, now: float) -> Lines:
        if file.descriptor is not None:  # it never waits
            return file.read(now, self._clock.monotonic())
        return await asyncio.to_thread(file.read, now, self._clock.monotonic())

    def _listen(self) -> None:
        """Be told of the next line, once: whoever is told and does not read is told for ever."""
        if self._file is not None and self._file.descriptor is not None:
            asyncio.get_running_loop().add_reader(self._file.descriptor, self._written)

    def _stop_listening(self, file: KernelFile) -> None:
        if file.descriptor is not None:
            asyncio.get_running_loop().remove_reader(file.descriptor)

    def _written(self) -> None:
        assert self._file is not None
        assert self.urgent is not None
        self._stop_listening(self._file)
        self.urgent.set()

    def _row(self, line: Line, now: float) -> EventRow | None:
        found = read_line(line.text)
        if found is None:
            return None
        at = now if line.time is None else min(line.time, now)
        if self._is_first and now - at > FIRST_SECONDS:
            return None
        late = {"happened": round(at, 3)} if now - at > LATE_SECONDS else {}
        told = now if late else at
        match found:
            case XidLine():
                return self.config.xids.saw(
                    Origin.KERNEL_LOG, now, pci=found.pci, uuid=None, code=found.code, message=found.text,
                    detail={**found.detail, **late}, time=told,
                )  # fmt: skip
            case SxidLine():
                return self._switch_row(found, told, late)
            case ConditionLine():
                return self._condition_row(found, told, late)

    def _switch_row(self, found: SxidLine, at: float, late: dict[str, float]) -> EventRow | None:
        flood, count = self._switches.setdefault((found.pci, found.code), (Flood(), [0]))
        count[0] += 1
        while len(self._switches) > SWITCHES_MAX:
            del self._switches[next(iter(self._switches))]
        if not flood.lets_through(at):
            return None
        severity = "" if found.fatal is None else " (fatal)" if found.fatal else " (not fatal)"
        words = f"{self.config.node}: NVSwitch {found.switch}: SXID {found.code}{severity}: {found.text or 'no words'}"
        detail = {
            "switch": found.switch,
            "pci": found.pci,
            "fatal": found.fatal,
            "link": found.link,
            "text": found.text,
        }
        detail |= {"text": found.text[:TEXT_MAX], "count": count[0], "suppressed": flood.taken(), **late}
        return EventRow(EventKind.SXID, self.config.node, words, False, code=found.code, detail=detail, time=at)

    def _condition_row(self, found: ConditionLine, at: float, late: dict[str, float]) -> EventRow | None:
        flood = self._floods[found.condition]
        if not flood.lets_through(at):
            return None
        words = f"{self.config.node}: {CONDITIONS[found.condition][0]}"
        detail = {"condition": found.condition, "text": found.text[:TEXT_MAX], "suppressed": flood.taken(), **late}
        return EventRow(EventKind.KERNEL, self.config.node, words, False, detail=detail, time=at)

    async def _save_if_moved(self, position: Position) -> None:
        if position != self._saved:
            self._saved = position
            self._is_first = False
            await asyncio.to_thread(self._save, position)

    def _save(self, position: Position) -> None:
        """Replace the file that says how far it was read. Where that fails, a restart may repeat what it has told."""
        state = self.config.state
        if state is None or position.at < 0:
            return
        try:
            state.parent.mkdir(parents=True, exist_ok=True)
            (new := state.with_suffix(".new")).write_text(json.dumps(asdict(position)))
            new.replace(state)
        except OSError:
            return


def _load(state: Path | None) -> Position | None:
    if state is None:
        return None
    try:
        with state.open(encoding="utf-8") as file:
            said = json.loads(file.read(STATE_BYTES_MAX))
        position = Position(str(said["origin"]), int(said["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return position if position.at >= 0 else None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
