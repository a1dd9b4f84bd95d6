"""Where the kernel's lines are read from: ``/dev/kmsg``, or a text file that somebody writes them to. Blocking, small.

Each gives the lines that are new since a :class:`Position` of an earlier process, or since it was opened.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from collectors.errors import SourceUnavailable
from collectors.kernel_prefix import KernelRecord, record_in, text_in

RECORD_BYTES_MAX = 16 * 1024
"""One read gives one record; the kernel's own bound (with a record's dictionary) is 8 KiB."""
RECORDS_MAX = 1_000
"""Of one look, so that a flood does not hold up the node's other sources: some 3 ms."""
FILE_BYTES_MAX = 1024 * 1024
"""Of one look at a text file."""
LINE_BYTES_MAX = 64 * 1024
"""A line of a text file that does not end within this is no line."""
KERNEL_FACILITY = 0


@dataclass(frozen=True, slots=True)
class Position:
    """How far was read. ``origin`` says in which log, a boot's id or a file's inode; ``at`` is a number or offset."""

    origin: str
    at: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line. ``time`` is when it was written (UTC seconds), as well as it can be known."""

    time: float | None
    text: str


@dataclass(slots=True)
class Lines:
    """What one look gave. ``lost`` records were overwritten before they were read, ``foreign`` ones a process's."""

    found: list[Line]
    lost: int = 0
    foreign: int = 0
    more: bool = False
    """There may be more: look again at once."""


class KernelFile(Protocol):
    """An open log. ``descriptor`` becomes readable when there are lines, ``None`` where one has to look."""

    descriptor: int | None

    def read(self, now: float, monotonic: float) -> Lines:
        """The new lines. ``now`` is UTC seconds, ``monotonic`` seconds since the machine started."""
        ...

    def position(self) -> Position:
        """How far was read."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def open_kernel_file(path: Path, since: Position | None, boot: str) -> KernelFile:
    """Open ``path``. Raises :class:`SourceUnavailable`, which says what to do."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceUnavailable(_unreadable(path, error)) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return TextFile(path, descriptor, since)
    return Kmsg(descriptor, since, boot)


def _unreadable(path: Path, error: OSError) -> str:
    remedy = "Give the path of the kernel's log (collect.kernel_log)"
    if error.errno == errno.ENOENT:
        remedy = "In a container mount the host's /dev/kmsg, or give a file that syslog writes (collect.kernel_log)"
    elif error.errno in (errno.EPERM, errno.EACCES):
        remedy = "Run as root or with CAP_SYSLOG, or set kernel.dmesg_restrict to 0; in a container run privileged"
    return f"the kernel's log {path} cannot be read: {error.strerror}. {remedy}. Until then XIDs come from NVML alone."


class Kmsg:
    """``/dev/kmsg``: numbered records, the oldest of which the kernel overwrites."""

    def __init__(self, descriptor: int, since: Position | None, boot: str) -> None:
        self.descriptor: int | None = descriptor
        self._fd = descriptor
        self._boot = boot
        self._after = since.at if since is not None and since.origin == boot else -1
        self._caught_up = False

    def read(self, now: float, monotonic: float) -> Lines:
        """The new records of the kernel itself; a process may write there too, and is not believed."""
        lines = Lines([])
        for _ in range(RECORDS_MAX):
            try:
                data = os.read(self._fd, RECORD_BYTES_MAX)
            except BlockingIOError:
                self._caught_up = True
                return lines
            except OSError as error:
                if error.errno != errno.EPIPE:  # overwritten: the next read gives the oldest that is there
                    return lines
                continue
            if (record := record_in(data)) is not None:
                self._take(record, lines, now, monotonic)
        lines.more = True
        return lines

    def _take(self, record: KernelRecord, lines: Lines, now: float, monotonic: float) -> None:
        if record.number <= self._after:
            return
        if self._after >= 0:
            lines.lost += record.number - self._after - 1
        self._after = record.number
        if record.facility != KERNEL_FACILITY:
            lines.foreign += 1
            return
        # The clock of the records is not disciplined and walks away over weeks: what is read as it comes is of now.
        lines.found.append(Line(now if self._caught_up else now - monotonic + record.seconds, record.text))

    def position(self) -> Position:
        """The number of the newest record that was read."""
        return Position(self._boot, self._after)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
        self.descriptor = None


class TextFile:
    """A file that grows, and may be moved away or cut off."""

    descriptor: int | None = None

    def __init__(self, path: Path, descriptor: int, since: Position | None) -> None:
        self._path, self._fd = path, descriptor
        status = os.fstat(descriptor)
        self._inode = status.st_ino
        resumes = since is not None and since.origin == str(self._inode) and since.at <= status.st_size
        self._at = since.at if since is not None and resumes else status.st_size
        self._begun = b""

    def read(self, now: float, monotonic: float) -> Lines:
        """The lines that have ended since the last look. What was begun is kept until its end comes."""
        lines = Lines([])
        self._look(lines, now, now - monotonic)
        if not lines.more and self._is_another():
            self._reopen()
            self._look(lines, now, now - monotonic)
        return lines

    def _look(self, lines: Lines, now: float, booted: float) -> None:
        if os.fstat(self._fd).st_size < self._at:
            self._at, self._begun = 0, b""  # cut off by whoever copies it away
        data = os.pread(self._fd, FILE_BYTES_MAX, self._at)
        self._at += len(data)
        *ended, begun = (self._begun + data).split(b"\n")
        self._begun = begun if len(begun) <= LINE_BYTES_MAX else b""
        for raw in ended:
            lines.found.append(
                Line(*text_in(raw[:LINE_BYTES_MAX].decode("utf-8", "replace").rstrip("\r"), now, booted))
            )
        lines.more = len(data) == FILE_BYTES_MAX

    def _is_another(self) -> bool:
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return False  # moved away, and the new one is not there yet

    def _reopen(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        os.close(self._fd)
        self._fd, self._inode, self._at, self._begun = descriptor, os.fstat(descriptor).st_ino, 0, b""

    def position(self) -> Position:
        """The offset behind the last line that was read."""
        return Position(str(self._inode), self._at - len(self._begun))

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
