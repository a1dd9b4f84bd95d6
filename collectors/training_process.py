"""The process at the other end of the SDK's socket: whether it still lives, and where its threads stand.

The kernel says which process has connected. A handle of it (``pidfd``) tells its end without doubt; the pipe that it
offers is opened through ``/proc``, so that what ``faulthandler`` writes there arrives even while the process holds
Python's lock. Where either may not be had (another user, another namespace, no Linux) nothing is claimed.
"""

import asyncio
import contextlib
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path

from collectors.training_stacks import stack_cells

READ_BYTES = 16 * 1024
DUMP_BYTES_MAX = 256 * 1024
"""A hundred threads of fifty frames have 400 KiB; the one that trains comes last and its innermost frames first."""
SETTLE_SECONDS = 0.2
"""A dump is written within milliseconds; so long after its last piece it is whole."""
STACKS_SECONDS = 5.0
"""Between two stacks of a process: what comes sooner is passed over."""
GONE_SECONDS = 2.0
"""Between a connection's end and that of its process: a killed one is gone within milliseconds."""


async def process_of(
    pid: int | None, stack_fd: int | None, thread: str, told: Callable[[dict[str, str]], None]
) -> "TrainingProcess":
    """Take hold of process ``pid`` (``None``: of none). ``told`` is given the cells of each stack event."""
    handle = pipe = None
    if pid is not None:
        handle = await asyncio.to_thread(_handle_of, pid)
        pipe = None if stack_fd is None else await asyncio.to_thread(_open_pipe, pid, stack_fd)
    return TrainingProcess(handle, pipe, thread, told)


class TrainingProcess:
    """What :func:`process_of` got hold of. Close it."""

    def __init__(
        self, handle: int | None, pipe: int | None, thread: str, told: Callable[[dict[str, str]], None]
    ) -> None:
        self._thread, self._told = thread, told
        self._loop = asyncio.get_running_loop()
        self._handle, self._pipe = handle, pipe
        self._text = bytearray()
        self._settling: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        if self._pipe is not None:
            self._loop.add_reader(self._pipe, self._readable)

    @property
    def holds_stacks(self) -> bool:
        """Whether the pipe is open here."""
        return self._pipe is not None

    async def gone(self) -> bool:
        """Whether the process ends within :data:`GONE_SECONDS`. False where it is not known."""
        handle = self._handle
        if handle is None:
            return False
        ended = asyncio.Event()
        self._loop.add_reader(handle, ended.set)
        try:
            async with asyncio.timeout(GONE_SECONDS):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            self._loop.remove_reader(handle)
        return True

    def close(self) -> None:
        """Let go of the process."""
        self._close_pipe()
        if self._settling is not None:
            self._settling.cancel()
            self._settled()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._loop.remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None

    def _readable(self) -> None:
        assert self._pipe is not None
        try:
            data = os.read(self._pipe, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_pipe()
            return
        self._text += data
        del self._text[:-DUMP_BYTES_MAX]
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self._loop.call_later(SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._settling = None
        text = self._text.decode("utf-8", "replace")
        self._text.clear()
        now = self._loop.time()
        cells = stack_cells(text, self._thread) if now >= self._not_before else None
        if cells is not None:
            self._not_before = now + STACKS_SECONDS
            self._told(cells)


def _handle_of(pid: int) -> int | None:
    with contextlib.suppress(OSError, AttributeError):
        handle = os.pidfd_open(pid)
        if not select.select([handle], [], [], 0)[0]:
            return handle
        os.close(handle)
    return None


def _open_pipe(pid: int, descriptor: int) -> int | None:
    """A pipe of that process, and nothing but a pipe: opening another kind of file may do things."""
    place = Path("/proc", str(pid), "fd", str(descriptor))
    with contextlib.suppress(OSError):
        if not stat.S_ISFIFO(place.stat().st_mode):
            return None
        opened = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISFIFO(os.fstat(opened).st_mode):
            return opened
        os.close(opened)
    return None
