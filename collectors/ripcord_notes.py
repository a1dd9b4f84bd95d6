"""What ripcord has found and what has become of it, in one small file that is replaced as a whole."""

import asyncio
import base64
import json
import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from collectors.moment import Moment
from telemetry_bus.errors import FrameError
from telemetry_bus.findings import Finding, findings_frame, findings_in
from telemetry_bus.frames import FrameMaker, decode, encode
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import FindingState

NOTES_MAX = 512
"""Sixteen jobs on one node, each with a trouble, its place found three times, its end, and as much again."""

_log = logging.getLogger(__name__)

Scope = tuple[str, str | None, str | None, str | None, str | None]


class Said(StrEnum):
    """How far a finding has come."""

    NOT_YET = "not_yet"
    PAGED = "paged"
    """A gateway has paged it; it is not on the bus."""
    PUBLISHED = "published"
    """It is on the bus, said by us or by the central detectors: kept while the trouble is open."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A finding, the number (``boot``, ``seq``) of its frame, and when it was ``found``.

    ``ours``: it was found while the bus was away, so that its end is ours to say as well.
    """

    finding: Finding
    boot: uuid.UUID
    seq: int
    found: Moment
    said: Said
    ours: bool
    receipts: tuple[str, ...] = ()


def scope_of(finding: Finding) -> Scope:
    """What a finding is about, as far as it can be open once."""
    return (
        finding.kind.value,
        finding.job,
        finding.attempt,
        finding.node if finding.job is None else None,
        (finding.subject),
    )


class Notes:
    """Findings in the order in which they were found, by id; bounded by :data:`NOTES_MAX`."""

    def __init__(self, path: Path) -> None:
        self.left_out = 0
        self._path = path
        self._kept: dict[str, Kept] = {}
        self._written: str | None = None
        self._writing = asyncio.Lock()

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept.values()))

    def __contains__(self, finding_id: str) -> bool:
        return finding_id in self._kept

    def get(self, finding_id: str) -> Kept | None:
        """What is known of a finding."""
        return self._kept.get(finding_id)

    def first(self, said: Said) -> Kept | None:
        """The oldest that has come so far and no farther."""
        return next((kept for kept in self._kept.values() if kept.said is said), None)

    def ours(self, scope: Scope) -> bool:
        """Whether trouble of ``scope`` was found while the bus was away."""
        return any(kept.ours and scope_of(kept.finding) == scope for kept in self._kept.values())

    def still_open(self) -> list[Kept]:
        """The newest firing finding of each scope that was not said to be over."""
        found: dict[Scope, Kept] = {}
        for kept in self._kept.values():
            if kept.finding.state is FindingState.RESOLVED:
                found.pop(scope_of(kept.finding), None)
            else:
                found[scope_of(kept.finding)] = kept
        return list(found.values())

    def put(self, kept: Kept) -> None:
        """Write down or change. At the limit what everybody knows goes first, then the oldest."""
        if kept.said is Said.PUBLISHED:  # of what is known the newest tells enough
            for other in list(self._kept.values()):
                same = scope_of(other.finding) == scope_of(kept.finding) and other.finding.id != kept.finding.id
                if same and other.said is Said.PUBLISHED and other.ours is kept.ours:
                    del self._kept[other.finding.id]
        self._kept[kept.finding.id] = kept
        while len(self._kept) > NOTES_MAX:
            gone = self.first(Said.PUBLISHED) or next(iter(self._kept.values()))
            del self._kept[gone.finding.id]
            self.left_out += gone.said is Said.NOT_YET

    def drop(self, finding_id: str) -> None:
        """Forget one."""
        self._kept.pop(finding_id, None)

    def close(self, scope: Scope) -> None:
        """Trouble of ``scope`` is over and everybody knows: forget what was published of it."""
        for kept in list(self._kept.values()):
            if kept.said is Said.PUBLISHED and scope_of(kept.finding) == scope:
                del self._kept[kept.finding.id]

    async def write(self) -> None:
        """Make durable what has changed since the last time. Raises ``OSError``."""
        async with self._writing:
            text = dumps([_as_json(kept) for kept in self._kept.values()])
            if text != self._written:
                await asyncio.to_thread(_replace, self._path, text)
                self._written = text

    def load(self) -> None:
        """Read what the process before has written; what cannot be read is left out, and said."""
        try:
            rows = json.loads(self._path.read_text())
            self._kept = {kept.finding.id: kept for kept in map(_from_json, rows)}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, FrameError) as error:
            _log.error("the findings in %s cannot be read and are left out: %s", self._path, error)


def _as_json(kept: Kept) -> dict[str, Any]:
    maker = FrameMaker("ripcord", kept.boot)
    maker.seq = kept.seq
    found = kept.found
    frame = findings_frame(maker, [kept.finding], found.wall)
    return {
        "finding": base64.b64encode(encode(frame)).decode(),
        "said": kept.said.value,
        "ours": kept.ours,
        "receipts": list(kept.receipts),
        "found": [str(found.boot), found.wall, found.monotonic],
    }


def _from_json(row: dict[str, Any]) -> Kept:
    frame = decode(base64.b64decode(row["finding"]), frozenset({"finding/1"}))
    (finding,) = findings_in(frame)
    boot, wall, monotonic = row["found"]
    run = frame.manifest[0]
    found = Moment(uuid.UUID(boot), float(wall), float(monotonic))
    return Kept(finding, run.boot, run.seq, found, Said(row["said"]), bool(row["ours"]), tuple(row["receipts"]))


def _replace(path: Path, text: str) -> None:
    """Write beside it and rename: whenever the machine stops, one of the two is there as a whole."""
    beside = path.with_suffix(".new")
    file = os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
