"""How a publish in one process is noticed in another: eight shared bytes.

A poll of SQLite costs a system call and a transaction; a look at mapped memory costs a microsecond. The counter only
tells that something *may* be new. It can lag behind the log (a process killed between its commit and its knock), so
readers also look at the log itself once in a while.
"""

import mmap
from pathlib import Path

from telemetry_bus.errors import InaccessibleFolder

_SIZE = 8


class Knocker:
    """The shared counter. Increments of two processes may fall together; all that is needed is that it changes."""

    def __init__(self, folder: Path) -> None:
        path = folder / "log.wake"
        try:
            with path.open("ab") as file:
                if file.tell() < _SIZE:
                    file.truncate(_SIZE)
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), _SIZE)
        except OSError as error:
            raise InaccessibleFolder(str(folder), error) from error

    def knock(self) -> None:
        """Say that there is something new."""
        self._map[:] = ((self.count() + 1) & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(_SIZE, "little")

    def count(self) -> int:
        """The counter; another value than last time means that something is new."""
        return int.from_bytes(self._map[:], "little")

    def close(self) -> None:
        """Unmap."""
        self._map.close()
