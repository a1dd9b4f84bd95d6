"""The spool's folder: one collector has it, and a damaged log in it is set aside."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from collectors.errors import SpoolTaken
from telemetry_bus.errors import InaccessibleFolder


def locked(folder: Path) -> int:
    """The lock of the folder, as an open file. Raises SpoolTaken if another process has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InaccessibleFolder(str(folder), error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise SpoolTaken(str(folder)) from error
    return file


def set_aside(folder: Path) -> None:
    """Move a damaged log out of the way, for a person to look at; the one before it goes."""
    aside = folder / "damaged"
    aside.mkdir(exist_ok=True, mode=0o700)
    for name in ("log.sqlite", "log.sqlite-wal", "log.sqlite-shm"):
        (aside / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (folder / name).rename(aside / name)
