"""What may come in from below: telemetry, the backlog, dead letters, and nothing that detectors or the bus say."""

from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import numpy as np

from telemetry_bus.errors import FrameError, FrameFault
from telemetry_bus.frames import SOURCE_BYTES_MAX, Frame, decode
from telemetry_bus.sources import NodeSource, key_of, parse_source
from telemetry_bus.topics import TELEMETRY, TOPIC_SCHEMAS, Topic

FROM_BELOW = frozenset({*TELEMETRY, Topic.BACKLOG, Topic.DEAD_LETTER})
"""Findings come as reports; ticks and verdicts never come from a node."""


LANES = 32
"""Of the groups of gateways below: 600 racks' 90 MB a second are 0.7 MB for each lane in a quarter of a second, a frame
that costs its readers little; and these are enough lanes for the few dozen partitions of a topic."""


class Answering(Protocol):
    """Who is told what became of a frame: exactly once, or never where the connection is gone."""

    def durable(self, id_: int) -> None:
        """It is durable upstream."""
        ...

    def not_taken(self, id_: int, error: Exception) -> None:
        """It was not taken, and why."""
        ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came in, ``at`` monotonic seconds, and was not looked at yet."""

    owner: Answering
    id: int
    topic: str
    key: str
    payload: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A frame that came in and was found good, on its way up."""

    topic: Topic
    key: str
    frame: Frame
    payload: bytes
    owner: Answering
    id: int


def checked(topic: str, key: str, payload: bytes, group: str | None, lanes: int = LANES) -> tuple[Topic, str, Frame]:
    """The topic, the partition key and the frame of what came in. Raises :class:`FrameError`.

    Without a topic it is the live one of the frame's schema.
    """
    if len(key.encode()) > SOURCE_BYTES_MAX:
        raise FrameError(FrameFault.BAD_MANIFEST, f"a key of more than {SOURCE_BYTES_MAX} bytes")
    if topic:
        wanted = _topic(topic)
        frame = decode(payload, TOPIC_SCHEMAS[wanted])
    else:
        frame = decode(payload)
        wanted = _live_topic(frame.schema_id)
    return wanted, _key(key, frame, group, lanes), frame


def _topic(name: str) -> Topic:
    try:
        topic = Topic(name)
    except ValueError as error:
        raise FrameError(FrameFault.WRONG_TOPIC, f"{name[:64]!r} is no topic") from error
    if topic not in FROM_BELOW:
        expected = ", ".join(sorted(FROM_BELOW))
        raise FrameError(FrameFault.FOREIGN, f"{topic} is not taken from below; expected {expected}")
    return topic


def _live_topic(schema_id: str) -> Topic:
    for topic in TELEMETRY:
        if schema_id in TOPIC_SCHEMAS[topic]:
            return topic
    raise FrameError(FrameFault.FOREIGN, f"frames of {schema_id} are not taken from below")


def _key(key: str, frame: Frame, group: str | None, lanes: int) -> str:
    """A job's own name; for nodes' frames the group of this gateway, or the lane of the group of one below.

    Frames are merged under one key: with a thousand nodes' or racks' own there would be nothing to merge. Whichever
    gateways frames come by, the same group gives the same lane, and so the same partition.
    """
    first = next(iter(frame.manifest), None)
    if first is None:
        return key
    own = key_of(first.source)
    if group is None or not isinstance(parse_source(first.source), NodeSource):
        return key or own
    return group if key in ("", own) else f"lane-{crc32(key.encode()) % lanes}"


def is_critical(topic: Topic, frame: Frame) -> bool:
    """Whether a frame must not wait to be merged: things that happened, and rows with a number that is none."""
    if topic is Topic.EVENTS:
        return True
    if topic is not Topic.TRAIN:
        return False
    for name in ("loss", "grad_norm"):
        values, valid = frame.numbers(name)
        if bool(np.any(valid & ~np.isfinite(values))):
            return True
    counts, known = frame.numbers("nonfinite")
    return bool(np.any(known & (counts > 0)))
