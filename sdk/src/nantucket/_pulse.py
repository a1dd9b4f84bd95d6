"""Signs of life while the training thread says nothing: heartbeats, and where its threads stand.

Both come from the sender's thread, so that they go on when the training thread hangs. Should that one hold the
interpreter's lock, nothing in Python runs any more: for that a timer of :mod:`faulthandler` is armed, which needs no
lock; it writes into a pipe whose other end the collector has opened.
"""

from __future__ import annotations

import faulthandler
import os
from typing import Any, Callable

from nantucket import _clock
from nantucket._life import Life

QUIET_SECONDS = 20.0
"""A training thread that has said nothing for so long is spoken for: until then its rows are the sign of life."""
BEAT_SECONDS = 30.0
STACK_SECONDS = 60.0
"""Without a call for so long, or three times the longest step so far, the stacks are sent."""
STEPS = 3.0
AGAIN = 4.0
"""A hang is looked at again after four times as long."""
DUMP_BYTES_MAX = 65_536
"""What a Linux pipe holds. A hundred threads of fifty frames have as much; what does not fit is cut off."""


class Pulse:
    """Looks after one process. ``tell(kind, step, detail, message)`` sends an event."""

    def __init__(self, life: Life, seconds: float, tell: Callable[..., None]) -> None:
        self._life, self._seconds, self._tell = life, seconds, tell
        self._next_beat = 0.0
        self._next_arming = 0.0
        self._next_dump = 0.0
        self._heard = 0.0
        self.held = False
        """Whether the collector holds the pipe: then it reads what is written there."""
        self.read_end, self._write_end = (-1, -1) if seconds <= 0 else self._pipe()

    @staticmethod
    def _pipe() -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)  # nobody waits, whether it is full or empty
        return ends

    def hello(self) -> dict[str, Any]:
        """What the collector needs to open the pipe and to tell the training thread from others."""
        if self.read_end < 0:
            return {}
        return {"stack_fd": self.read_end, "thread": f"0x{self._life.thread:016x}"}

    def look(self) -> None:
        """See whether something is due. Called by the sender's thread, often."""
        now = _clock.monotonic()
        life = self._life
        if life.heard != self._heard:
            self._heard = life.heard
            self._next_beat, self._next_dump = life.heard + QUIET_SECONDS, life.heard + self._patience()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            self._tell("heartbeat", life.step, {"phase": life.phase, "idle_seconds": round(now - life.heard, 3)})
        if self.read_end < 0:
            return
        if now >= self._next_dump:
            self._next_dump = life.heard + AGAIN * (now - life.heard)
            faulthandler.dump_traceback(file=self._write_end, all_threads=True)
        elif now >= self._next_arming:
            # Again before it goes off: it goes off only if this thread does not come back.
            self._next_arming = now + self._patience() / 4
            faulthandler.dump_traceback_later(self._patience(), file=self._write_end)
        if not self.held:
            self._say_own()

    def _patience(self) -> float:
        return max(self._seconds, STEPS * self._life.longest)

    def _say_own(self) -> None:
        """Nobody else reads the pipe: this thread does, as long as it runs."""
        try:
            text = os.read(self.read_end, DUMP_BYTES_MAX)
        except BlockingIOError:
            return
        thread = f"0x{self._life.thread:016x}"
        self._tell("stack", self._life.step, {"thread": thread}, text.decode("utf-8", "replace"))

    def close(self) -> None:
        """Disarm, and let go of the pipe."""
        if self.read_end >= 0:
            faulthandler.cancel_dump_traceback_later()
            for end in (self.read_end, self._write_end):
                os.close(end)
            self.read_end = self._write_end = -1

    def abandon(self) -> None:
        """In a forked child: the timer is gone there; the pipe is its parent's."""
        if self.read_end >= 0:
            for end in (self.read_end, self._write_end):
                os.close(end)
            self.read_end = self._write_end = -1
