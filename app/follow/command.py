"""``nantucket follow``: finds the files, follows them, and says what it does."""

import asyncio
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nantucket
from app.follow.follower import Followed
from app.follow.reading import TRAINER_STATE
from app.output import console, print_json
from telemetry_bus.runtime.clock import Clock, SystemClock

LOOK_SECONDS = 0.25
SCAN_SECONDS = 5.0
FILES_MAX = 64
"""Files that are followed at once, the newest of what is found."""
FRESH_SECONDS = 86_400.0
"""A file in a folder that nobody has written for a day is history."""
PATTERNS = ("*.log", "*.out", "*.txt", "*.jsonl", "*tfevents*", "*.wandb", TRAINER_STATE)
SCANNED_MAX = 100_000
"""Names in a folder that are looked at: a folder of a data set is no folder of logs."""


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """``job`` and ``attempt`` are made from the file's name and the time where they are not given."""

    paths: tuple[Path, ...]
    state: Path
    job: str | None = None
    attempt: str | None = None
    url: str | None = None
    format: str = "auto"
    from_start: bool = False
    once: bool = False


async def follow_command(options: FollowOptions, *, as_json: bool) -> int:
    """Follow until interrupted, or with ``once`` read what is there. 1 where nothing could be read."""
    follower = Follower(options, SystemClock(), lambda **said: _say(as_json, said))
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, asked.set)
    await asyncio.to_thread(follower.look)
    _say(as_json, {"watching": len(follower.files)})
    while not (options.once or asked.is_set()):
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await asked.wait()
        except TimeoutError:
            await asyncio.to_thread(follower.look)
    await asyncio.to_thread(follower.close)
    return 0 if follower.files or not options.once else 1


def _say(as_json: bool, said: dict[str, Any]) -> None:
    if as_json:
        print_json(said)
        return
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items() if value is not None)
    console(as_json=False).print(words, markup=False)


class Follower:
    """All files of the paths that were given. Blocks: for a thread. ``say`` is told what a person wants to know."""

    def __init__(self, options: FollowOptions, clock: Clock, say: Callable[..., None]) -> None:
        self._options, self._clock, self._say = options, clock, say
        self.files: dict[Path, Followed] = {}
        self._next_scan = 0.0
        self._first = True
        self._failing: set[Path] = set()

    def look(self) -> None:
        """See what is new, in every file."""
        now = self._clock.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + SCAN_SECONDS
            for path in self._found():
                if path not in self.files and len(self.files) < FILES_MAX:
                    self._follow(path)
            self._first = False
        for path, followed in self.files.items():
            try:
                followed.poll()
                self._failing.discard(path)
            except OSError as error:
                if path not in self._failing:
                    self._failing.add(path)
                    self._say(cannot_read=str(path), because=error.strerror or str(error))

    def _found(self) -> list[Path]:
        found: dict[Path, float] = {}
        for path in self._options.paths:
            if not path.is_dir():
                found[path] = float("inf")  # also where it is not there yet
                continue
            for file in _files_in(path):
                written = _written(file)
                if written is not None and self._clock.now() - written < FRESH_SECONDS:
                    found[_one_for_all(file)] = written
        return sorted(found, key=lambda file: -found[file])[:FILES_MAX]

    def _follow(self, path: Path) -> None:
        options = self._options
        job = options.job or job_name(path)
        attempt = options.attempt or f"followed-{int(self._clock.now())}"

        def begin(attempt: str) -> nantucket.Run:
            self._say(following=str(path), format=self.files[path].format, job=job, attempt=attempt)
            # The clock says here when a line was read, which is no time of a step.
            return nantucket.init(job, 0, attempt=attempt, role="follow", url=options.url, stack_seconds=0, timed=False)

        # What comes later, while we look, is new from its first line.
        from_start = options.from_start or options.once or not self._first
        self.files[path] = Followed(
            path, begin, state=options.state, name=attempt, wanted=options.format, from_start=from_start
        )

    def close(self) -> None:
        """Send what waits, and say what was done."""
        for path, followed in self.files.items():
            followed.close()
            unreadable = 0 if followed.reading is None else followed.reading.unreadable
            self._say(followed=str(path), format=followed.format, entries=followed.sent, unreadable=unreadable)


def job_name(path: Path) -> str:
    """A job's name from a file's: ``train.log`` in ``runs/gpt`` is ``gpt-train``."""
    folder = path.absolute().parent
    folder = folder.parent if "*" in folder.name else folder
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{folder.name}-{path.name.split('.')[0]}")
    return stem.strip("-._")[:96] or "followed"


def _files_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen = 0
    for root, _folders, names in os.walk(folder):
        for name in names:
            seen += 1
            if any(Path(name).match(pattern) for pattern in PATTERNS):
                found.append(Path(root, name))
        if seen > SCANNED_MAX:
            break
    return found


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _one_for_all(path: Path) -> Path:
    """Each checkpoint of a ``Trainer`` has a ``trainer_state.json`` with all that came before: the newest is enough."""
    if path.name == TRAINER_STATE and path.parent.name.startswith("checkpoint-"):
        return path.parent.parent / "checkpoint-*" / TRAINER_STATE
    return path
