"""Who uses the GPUs of which node, for detectors that name them. Pure and bounded."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from telemetry_bus.frames import Frame
from telemetry_bus.gpu_users import name_of, users_told

NODES_MAX = 65_536
"""The largest fleet that is planned for has 37,500 nodes; the longest silent is forgotten first."""
PLACES_MAX = 256
"""GPUs and MIG instances of a node; a collector tells no more."""
NAMES_MAX = 8
"""Names of one GPU. 300,000 GPUs take 45 MiB, measured: a name is one object for all its GPUs."""
FORGET_SECONDS = 900.0
"""A collector tells its users again every 240 s."""


@dataclass(slots=True)
class _Node:
    """``names`` by a hash of UUID and instance; ``newest`` is the time of the newest event."""

    newest: float
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)


class UsersOfNodes:
    """The names of what uses GPUs: jobs, Slurm jobs, pods, processes."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, _Node] = OrderedDict()
        self._last: tuple[str, ...] = ()

    def observe(self, frame: Frame) -> None:
        """Take an ``event/1`` frame. What says nothing, or is older than what is known of the node, is passed over."""
        for told in users_told(frame):
            if told is None:
                continue
            node = self._nodes.setdefault(told.node, _Node(told.time))
            place = hash((told.uuid, told.instance))
            if told.time < node.newest or (place not in node.names and len(node.names) >= PLACES_MAX):
                continue
            node.newest = told.time
            node.names[place] = self._shared(dict.fromkeys(name_of(user) for user in told.users))
            self._nodes.move_to_end(told.node)
            if len(self._nodes) > NODES_MAX:
                self._nodes.popitem(last=False)

    def _shared(self, names: Iterable[str]) -> tuple[str, ...]:
        """The first of these names; the GPUs of a node mostly have the same ones, and share them."""
        made = tuple(sys.intern(name) for name in islice(names, NAMES_MAX))
        if made != self._last:
            self._last = made
        return self._last

    def forget(self, node: str) -> None:
        """A node that is silent."""
        self._nodes.pop(node, None)

    def on(self, nodes: Iterable[str], now: float) -> list[tuple[str, int]]:
        """The names of who uses GPUs of ``nodes``, and on how many GPUs and instances: the largest first."""
        counts: Counter[str] = Counter()
        for name in nodes:
            node = self._nodes.get(name)
            if node is not None and abs(now - node.newest) <= FORGET_SECONDS:
                for names in node.names.values():
                    counts.update(names)
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
