"""How far readers have come, and which log this is: what our own compacted topic `positions` holds.

One record is one commit. Its key is the group and a digest of the partitions committed, so that two slices of one
group do not overwrite each other; compaction keeps the newest of each key. Whoever asks merges all of a group's by the
larger offset. The identity is the first of the records `identity`: each has a key of its own, so that of two processes
that make one at the same time both take the one that came first, and compaction keeps both.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from telemetry_bus.bus import Positions
from telemetry_bus.topics import Topic

OFFSET_END = 1 << 63
"""Kafka's offsets end there."""
_IDENTITY, _COMMIT = "identity", "commit"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Folded:
    """What the topic says, all of it read from its beginning on."""

    identity: str | None = None
    groups: dict[str, dict[Topic, dict[int, int]]] = field(default_factory=dict)

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """The next record. What somebody else has written there is passed over."""
        try:
            match json.loads(key or b""):
                case [str(kind), str(name)] if kind == _IDENTITY:
                    self.identity = self.identity or name
                case [str(kind), str(group), str()] if kind == _COMMIT:
                    merge(self.groups.setdefault(group, {}), _positions(json.loads(value or b"")))
                case _:
                    raise ValueError("neither a commit nor an identity")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            _log.warning("a record of the topic positions is passed over: %s", error)


def merge(into: dict[Topic, dict[int, int]], positions: Positions) -> None:
    """Keep the larger of two offsets."""
    for topic, offsets in positions.items():
        kept = into.setdefault(topic, {})
        for partition, offset in offsets.items():
            kept[partition] = max(offset, kept.get(partition, 0))


def checked(group: str, positions: Positions) -> None:
    """Raise ValueError for an offset that none can be."""
    wrong = {
        f"{topic}/{partition}": offset
        for topic, offsets in positions.items()
        for partition, offset in offsets.items()
        if not 0 <= offset < OFFSET_END
    }
    if wrong:
        raise ValueError(f"expected offsets from 0 to 2^63 - 1 for the group {group!r}, found {wrong}")


def identity_key() -> bytes:
    """The key of a new identity."""
    return json.dumps([_IDENTITY, str(uuid.uuid4())]).encode()


def commit_key(group: str, positions: Positions) -> bytes:
    """The key under which a commit of these partitions replaces the one before it."""
    digest = hashlib.sha256(json.dumps(sorted(_spots(positions))).encode()).hexdigest()[:16]
    return json.dumps([_COMMIT, group, digest]).encode()


def commit_value(positions: Positions) -> bytes:
    """The offsets of a commit."""
    return json.dumps({topic.value: dict(offsets) for topic, offsets in positions.items()}).encode()


def _spots(positions: Positions) -> Iterable[tuple[str, int]]:
    return ((topic.value, partition) for topic, offsets in positions.items() for partition in offsets)


def _positions(found: Mapping[str, Mapping[str, Any]]) -> Positions:
    positions: dict[Topic, dict[int, int]] = {}
    for topic, offsets in found.items():
        positions[Topic(topic)] = {int(partition): int(offset) for partition, offset in offsets.items()}
    return positions
