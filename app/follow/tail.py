"""New bytes of a file that grows, is rotated, or is written anew."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20
HEAD_BYTES = 256
"""By its beginning a file that was cut and written anew is told from one that grew."""


class Tail:
    """One path. :meth:`read` gives what came since; ``None`` says that another file begins there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._inode: tuple[int, int] | None = None
        self._offset = 0
        self._written = 0
        self._head = b""

    @property
    def identity(self) -> str:
        """Which file it is now, whatever its name: device and inode; empty before the first read."""
        return "" if self._inode is None else f"{self._inode[0]}:{self._inode[1]}"

    def read(self) -> Iterator[bytes | None]:
        """What there is now, in pieces. Raises ``OSError`` where the path cannot be read; it may come back."""
        if self._file is None:
            yield from self._open()
            return
        yield from self._pieces()
        if self._replaced():
            yield from self._pieces()  # what the writer of the old one still wrote
            self.close()
            yield from self._open()

    def _open(self) -> Iterator[bytes | None]:
        try:
            self._file = self._newest().open("rb")
        except FileNotFoundError:
            return  # between two rotations
        state = os.fstat(self._file.fileno())
        self._inode = (state.st_dev, state.st_ino)
        self._rewind()
        yield None
        yield from self._pieces()

    def _rewind(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._offset, self._head = 0, b""

    def _pieces(self) -> Iterator[bytes | None]:
        assert self._file is not None
        state = os.fstat(self._file.fileno())
        changed, self._written = state.st_mtime_ns != self._written, state.st_mtime_ns
        if state.st_size < self._offset or (changed and self._is_another()):
            self._rewind()  # it was cut and is written anew
            yield None
        while piece := self._file.read(PIECE_BYTES):
            self._head += piece[: HEAD_BYTES - len(self._head)]
            self._offset += len(piece)
            yield piece

    def _is_another(self) -> bool:
        """Whether the file begins otherwise than what was read: it may have grown past that again since it was cut."""
        assert self._file is not None
        return os.pread(self._file.fileno(), len(self._head), 0) != self._head

    def _replaced(self) -> bool:
        try:
            state = self._newest().stat()
        except FileNotFoundError:
            return False
        return (state.st_dev, state.st_ino) != self._inode

    def _newest(self) -> Path:
        """The path; of a pattern (``checkpoint-*/trainer_state.json``) the file that was written last."""
        if "*" not in self.path.parent.name or self.path.exists():
            return self.path
        files = list(self.path.parent.parent.glob(f"{self.path.parent.name}/{self.path.name}"))
        return max(files, key=lambda file: file.stat().st_mtime, default=self.path)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
