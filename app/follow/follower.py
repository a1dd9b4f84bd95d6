"""Files of jobs, followed: each is a run of the SDK, so that its rows go the way of any job's.

What is remembered of a file (in the state folder) is which of its entries the collector has acknowledged. After a
restart it is read from its beginning, what was delivered is passed over, and nothing is sent twice.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nantucket
from app.follow.reading import Document, Reading, reading_of
from app.follow.step import Step
from app.follow.tail import Tail

GLOBAL = "global"
"""What a job prints is what it has reduced: no rank is ever named as the origin."""
SETTLED_LOOKS = 2
"""Nothing may wait at so many looks in a row: between two of its queues an entry is in neither."""
REST_POLLS = 8
"""Looks without news (2 s) after which a step that more might have come for is taken as it is."""


@dataclass(slots=True)
class Place:
    """An entry of a file: its attempt, counted from 0, its step, and which of that step's entries it is."""

    attempt: int = 0
    step: int = -1
    entry: int = -1

    def after(self, step: int) -> "Place":
        """The place of the next entry. A step that lies before the last one is a restart: another attempt."""
        if step < self.step:
            return Place(self.attempt + 1, step, 0)
        return Place(self.attempt, step, self.entry + 1 if step == self.step else 0)

    def __le__(self, other: "Place") -> bool:
        return (self.attempt, self.step, self.entry) <= (other.attempt, other.step, other.entry)


@dataclass(slots=True)
class Kept:
    """What is remembered of a path."""

    identity: str
    name: str
    """Of the first attempt; those that follow are ``name.1``, ``name.2``."""
    delivered: Place

    @classmethod
    def read(cls, path: Path) -> "Kept | None":
        """What was written there, if it can be read."""
        try:
            raw = json.loads(path.read_text())
            return cls(str(raw["identity"]), str(raw["name"]), Place(**raw["delivered"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Put it there, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self)))
        beside.replace(path)


class Followed:
    """One file. ``begin(job's attempt)`` starts a run of the SDK; ``name`` is of the first attempt.

    ``from_start``: entries that are there already are sent as well.
    """

    def __init__(
        self,
        path: Path,
        begin: Callable[[str], nantucket.Run],
        *,
        state: Path,
        name: str,
        wanted: str,
        from_start: bool,
    ) -> None:
        self.path = path
        self.reading: Reading | None = None
        self.sent = 0
        """Entries that were handed over."""
        self._tail = Tail(path)
        self._begin, self._wanted, self._name = begin, wanted, name
        digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
        self._state = state / "follow" / f"{digest}.json"
        self._kept = Kept.read(self._state)
        self._place = Place()
        self._skip_all = not from_start and self._kept is None
        self._skip_to = Place()
        self._run: nantucket.Run | None = None
        self._run_attempt = -1
        self._begins = True
        self._quiet = 0
        self._settled = 0

    @property
    def format(self) -> str | None:
        """What it turned out to be; ``None`` while nothing has come."""
        return None if self.reading is None else self.reading.name

    def poll(self) -> None:
        """Read what there is now and hand it over. Raises ``OSError`` where the file cannot be read."""
        news = False
        for data in self._tail.read():
            news = True
            if data is None:
                self._begins = True
                continue
            if self._begins or self.reading is None:
                self.reading, self._begins = self._restart(data), False
            for step in self.reading.feed(data):
                self._take(step)
        self._quiet = 0 if news else self._quiet + 1
        if self.reading is not None and self._quiet == REST_POLLS:
            self._take_rest(self.reading)
        self._skip_all = False  # what comes from now on is new
        self._settle()

    def _restart(self, first: bytes) -> Reading:
        """Another file begins at this path, or the first that is seen of it."""
        before, reading = self.reading, reading_of(self.path, first, self._wanted)
        whole = isinstance(reading, Document)  # it holds all that the one before held
        kept = self._kept
        if before is None and kept is not None and (whole or kept.identity == self._tail.identity):
            self._skip_to, self._name = kept.delivered, kept.name
        elif before is not None and whole:
            self._skip_to, self._place = self._place, Place()
        return reading

    def _take_rest(self, reading: Reading) -> None:
        for step in reading.rest():
            self._take(step)

    def _take(self, step: Step) -> None:
        self._place = self._place.after(step.number)
        if self._skip_all:
            self._kept = Kept(self._tail.identity, self._name, self._place)
        elif not self._place <= self._skip_to:
            whose = {"scope": GLOBAL} if step.values else {}
            self._run_of(self._place.attempt).log(step.metrics, step=step.number, **{**whose, **step.values})
            self.sent += 1
            self._settled = 0
            if step.is_last:
                self._finish()

    def _run_of(self, attempt: int) -> nantucket.Run:
        if self._run is None or attempt != self._run_attempt:
            self._finish()
            name = self._name if attempt == 0 else f"{self._name}.{attempt}"
            self._run, self._run_attempt = self._begin(name), attempt
        return self._run

    def _settle(self) -> None:
        """Remember what the collector has, once it has everything."""
        if self._run is None or self._settled > SETTLED_LOOKS:
            return
        self._settled = 0 if self._run.waiting else self._settled + 1
        if self._settled == SETTLED_LOOKS:
            self._kept = Kept(self._tail.identity, self._name, self._place)
            self._kept.write(self._state)

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()
            if not self._run.waiting:
                self._kept = Kept(self._tail.identity, self._name, self._place)
            self._run = None

    def close(self) -> None:
        """Send what waits and let go."""
        if self.reading is not None:
            self._take_rest(self.reading)
        self._finish()
        self._tail.close()
        if self._kept is not None:
            self._kept.write(self._state)
