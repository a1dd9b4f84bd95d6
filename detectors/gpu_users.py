"""Who uses the GPUs of which node, for detectors that name them. Pure and bounded."""

import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable

from telemetry_bus.frames import Frame
from telemetry_bus.gpu_users import name_of, users_told

NODES_MAX = 65_536
"""The largest fleet that is planned for has 37,500 nodes; the longest silent is forgotten first."""
PLACES_MAX = 256
"""GPUs and MIG instances of a node; a collector tells no more."""
NAMES_MAX = 8
"""Names of one GPU. A job's is one object for all its GPUs: 300,000 GPUs take some 40 MiB."""
FORGET_SECONDS = 900.0
"""A collector tells its users again every 240 s."""


class UsersOfNodes:
    """The names of what uses GPUs: jobs, Slurm jobs, pods, processes."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, dict[tuple[str, str | None], tuple[float, tuple[str, ...]]]] = OrderedDict()

    def observe(self, frame: Frame) -> None:
        """Take an ``event/1`` frame. What says nothing is passed over."""
        for told in users_told(frame):
            if told is None:
                continue
            places = self._nodes.setdefault(told.node, {})
            place = (told.uuid, told.instance)
            known = places.get(place)
            if (known is None and len(places) >= PLACES_MAX) or (known is not None and known[0] > told.time):
                continue
            names = dict.fromkeys(name_of(user) for user in told.users)
            places[place] = told.time, tuple(sys.intern(name) for name in list(names)[:NAMES_MAX])
            self._nodes.move_to_end(told.node)
            if len(self._nodes) > NODES_MAX:
                self._nodes.popitem(last=False)

    def forget(self, node: str) -> None:
        """A node that is silent."""
        self._nodes.pop(node, None)

    def on(self, nodes: Iterable[str], now: float) -> list[tuple[str, int]]:
        """The names of who uses GPUs of ``nodes``, and on how many GPUs and instances: the largest first."""
        counts: Counter[str] = Counter()
        for node in nodes:
            for time, names in self._nodes.get(node, {}).values():
                if abs(now - time) <= FORGET_SECONDS:
                    counts.update(names)
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
