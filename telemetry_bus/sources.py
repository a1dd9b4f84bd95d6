"""The names of sources, and the key by which what belongs together stays in one partition.

A node's collector makes frames as ``NODE/gpu``, ``NODE/gpu-events``, ``NODE/links`` and ``NODE/spool``, a rank of a
job as ``JOB/ATTEMPT/RANK/train``, ``.../metric`` and ``.../event``. Any other name (``NODE/detect``) is a part of
Nantucket itself. The first part of a name is the partition key: a job's rows stay in one partition and in order, and so
do a node's.
"""

from dataclasses import dataclass

from telemetry_bus.frames import Frame

NODE_STREAMS = frozenset({"gpu", "gpu-events", "links", "spool"})
JOB_STREAMS = frozenset({"train", "metric", "event"})


@dataclass(frozen=True, slots=True)
class NodeSource:
    """A stream of a node's collector."""

    node: str
    stream: str


@dataclass(frozen=True, slots=True)
class JobSource:
    """A stream of one rank of a job's attempt."""

    job: str
    attempt: str
    rank: int
    stream: str


def parse_source(name: str) -> NodeSource | JobSource | None:
    """Whose stream ``name`` is; ``None`` for what is neither a collector's nor a rank's."""
    parts = name.split("/")
    if parts[-1] in NODE_STREAMS and len(parts) > 1:
        return NodeSource(name.rpartition("/")[0], parts[-1])
    if len(parts) == 4 and parts[3] in JOB_STREAMS and parts[2].isascii() and parts[2].isdecimal():
        return JobSource(parts[0], parts[1], int(parts[2]), parts[3])
    return None


def key_of(frame: Frame | str) -> str:
    """The partition key of a frame or of a source's name: the first part of the (first) source's name.

    Empty for a frame without a manifest, which has no rows either.
    """
    if isinstance(frame, Frame):
        return key_of(frame.manifest[0].source) if frame.manifest else ""
    return frame.partition("/")[0]
