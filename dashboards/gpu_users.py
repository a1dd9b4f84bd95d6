"""Who uses which GPU, as the nodes' collectors have told: joined to GPUs and jobs when somebody asks. Pure."""

import json
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from telemetry_bus.frames import Frame
from telemetry_bus.gpu_users import KEYS, users_told
from telemetry_bus.json_text import dumps

NODES_MAX = 65_536
"""37,500 nodes, and room; the longest silent is forgotten first."""
PLACES_MAX = 256
"""GPUs and MIG instances of a node; a collector tells no more."""
USERS_BYTES_MAX = 8 * 1024
"""Of one GPU: the 48 clients of MPS, some 150 bytes each. What is more is counted."""
BYTES_MAX = 256 * 1024 * 1024
"""Of all: 300,000 GPUs with one user each take 195 MiB, measured, of which 58 are their texts."""
PLACE_BYTES = 400
"""What a GPU takes beside its text: its key, its row, its place in the table."""
FORGET_SECONDS = 900.0
"""As long as the fleet remembers a GPU. A collector tells its users again every 240 s."""
USERS_SHOWN_MAX = 16
"""Of one GPU in the list of the fleet: with 4,096 GPUs some 10 MB at the very worst."""
JOB_GPUS_MAX = 1_024
"""GPUs that a job's page lists, some 200 KB; the number of all is told."""


Place = tuple[str, str | None]
"""UUID and instance."""


@dataclass(frozen=True, slots=True)
class _Held:
    """``users`` is a JSON array of ``count``, checked: as objects those of 300,000 GPUs would take five times the
    memory. ``jobs`` are the jobs in it, one for each user that has one.
    """

    time: float
    gpu: int | None
    users: str
    count: int
    left_out: int
    jobs: tuple[str, ...]

    @property
    def size(self) -> int:
        return PLACE_BYTES + len(self.users)


@dataclass(slots=True)
class _Node:
    """``jobs`` are those on any of its places, ``newest`` is the time of its newest event."""

    places: dict[Place, _Held] = field(default_factory=dict)
    jobs: frozenset[str] = frozenset()
    newest: float = 0.0

    @property
    def size(self) -> int:
        return sum(held.size for held in self.places.values())

    def put(self, place: Place, held: _Held) -> None:
        """Keep what was told, and nothing that was told long before."""
        self.places[place] = held
        self.newest = max(self.newest, held.time)
        old = [other for other, known in self.places.items() if self.newest - known.time > FORGET_SECONDS]
        for other in old:
            del self.places[other]
        self.jobs = frozenset[str]().union(*(known.jobs for known in self.places.values()))


class GpuUsersState:
    """The users of every GPU and MIG instance."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.events_refused = 0
        """Events that say nothing which could be shown."""
        self.places_over_limit = 0
        """GPUs and instances of a node beyond what is held of one."""
        self.bytes = 0
        self._bytes_max = bytes_max
        self._nodes: OrderedDict[str, _Node] = OrderedDict()
        self._jobs: tuple[str, ...] = ()

    def observe(self, frame: Frame) -> None:
        """Take an ``event/1`` frame; only rows of users are looked at."""
        for told in users_told(frame):
            if told is None:
                self.events_refused += 1
                continue
            kept, users = _fitting(told.users)
            left_out = told.left_out + len(told.users) - kept
            jobs = self._shared(user["job"] for user in told.users[:kept] if "job" in user)
            self._put(told.node, (told.uuid, told.instance), _Held(told.time, told.gpu, users, kept, left_out, jobs))

    def of_node(self, node: str) -> "NodeUsers":
        """The users of one node's GPUs."""
        return NodeUsers(self._nodes.get(node, _Node()).places)

    def of_job(self, job: str) -> tuple[list[dict[str, Any]], int]:
        """The GPUs that a job uses, a row for each of its users there, and how many there are in all."""
        rows: list[dict[str, Any]] = []
        count = 0
        for node, (uuid, instance), held in self._with(job):
            count += held.jobs.count(job)
            if len(rows) < JOB_GPUS_MAX:
                place = {"node": node, "gpu": held.gpu, "uuid": uuid, "instance": instance}
                rows += [place | _whole(user) for user in json.loads(held.users) if user.get("job") == job]
        return rows[:JOB_GPUS_MAX], count

    def forget(self, now: float) -> None:
        """Free the nodes that told long ago, or in a future that is not this clock's."""
        for name, node in list(self._nodes.items()):
            if abs(now - node.newest) > FORGET_SECONDS:
                self.bytes -= node.size
                del self._nodes[name]

    def _with(self, job: str) -> Iterator[tuple[str, Place, _Held]]:
        for name, node in self._nodes.items():
            if job in node.jobs:
                for place, held in node.places.items():
                    if job in held.jobs:
                        yield name, place, held

    def _shared(self, jobs: Iterable[str]) -> tuple[str, ...]:
        """These jobs, as the same object as the last ones where they are equal: the GPUs of a job lie together."""
        made = tuple(map(sys.intern, jobs))
        if made != self._jobs:
            self._jobs = made
        return self._jobs

    def _put(self, name: str, place: Place, held: _Held) -> None:
        node = self._nodes.setdefault(name, _Node())
        known = node.places.get(place)
        if known is not None and known.time > held.time:
            return
        if known is None and len(node.places) >= PLACES_MAX:
            self.places_over_limit += 1
            return
        self.bytes -= node.size
        node.put(place, held)
        self.bytes += node.size
        self._nodes.move_to_end(name)
        while len(self._nodes) > NODES_MAX or (self.bytes > self._bytes_max and len(self._nodes) > 1):
            self.bytes -= self._nodes.popitem(last=False)[1].size


class NodeUsers:
    """The users of one node's GPUs, looked up by GPU."""

    def __init__(self, places: Mapping[Place, _Held]) -> None:
        self._places = places

    def of_gpu(self, gpu: int, uuid: str | None) -> dict[str, Any]:
        """``users`` of a GPU and its instances (``None`` where nobody has told), and how many are not shown."""
        users: list[dict[str, Any]] = []
        left_out = 0
        told = False
        for (of, instance), held in self._places.items():
            if of != uuid and (held.gpu is None or held.gpu != gpu):
                continue
            told = True
            room = USERS_SHOWN_MAX - len(users)
            if room and held.count:
                users += [{"instance": instance, **_whole(user)} for user in json.loads(held.users)[:room]]
            left_out += held.left_out + max(0, held.count - room)
        return {"users": users if told else None, "users_left_out": left_out}


def _whole(user: Mapping[str, Any]) -> dict[str, Any]:
    """Every key, absent as ``None``."""
    return {key: user.get(key) for key in KEYS}


def _fitting(users: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """How many of the first users fit into :data:`USERS_BYTES_MAX`, and those as JSON."""
    texts: list[str] = []
    room = USERS_BYTES_MAX
    for user in users:
        text = dumps(user)
        room -= len(text.encode()) + 1
        if room < 2:
            break
        texts.append(text)
    return len(texts), f"[{','.join(texts)}]"
