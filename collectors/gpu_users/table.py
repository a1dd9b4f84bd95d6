"""The users of each GPU of a node, and what is told of them. Pure: what was seen comes in, events come out.

What a GPU's users are is told when it changes, and again every few minutes for whoever reads the bus from a later
moment on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collectors.gpu_users.merge import Holder, Known, Process, TrainingPeer, users_of
from collectors.gpu_users.user import GpuUser, Origin
from collectors.source import EventRow
from telemetry_bus.cells import DETAIL_BYTES_MAX
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import EventKind

REFRESH_SECONDS = 240.0
"""A dashboard that starts reads the last 300 s of the bus: everything told within them is known to it. Leviathan's
300,000 GPUs tell 1,250 rows a second in all, beside 300,000 of their readings."""
CHANGE_SECONDS_MIN = 20.0
"""A GPU's users are told at most three times a minute: a job that dies and starts again without end, or forks, costs a
node of 8 GPUs 24 events a minute and not 48 at each look."""
FORGET_SECONDS = 300.0
"""An instance that nobody has listed for so long is gone. A driver that hangs keeps its last list as long."""
PLACES_MAX = 256
"""16 GPUs of 8 instances are 144 places with the GPUs themselves."""
PROCESSES_MAX = 128
"""Of one GPU. MPS takes 48 clients; a GPU shared by time has tens."""
HOLDERS_MAX = 64
"""Containers of one GPU: the device plugin's replicas are tens."""
PEERS_MAX = 512
"""As many connections as the listener for the SDK takes."""
USERS_TOLD_MAX = 64
"""Of one GPU in an event. As many as fit its detail's 32 KiB are told, some 130 bytes each; the rest is counted."""
WORDS_MAX = 3
"""Users that an event's message names."""


@dataclass(frozen=True, slots=True)
class Place:
    """A GPU, or a MIG instance of it (``9/0``) where ``instance`` is not ``None``."""

    uuid: str
    instance: str | None = None


@dataclass(slots=True)
class _Listed:
    gpu: int | None
    pids: Sequence[int]
    seen: float


@dataclass(frozen=True, slots=True)
class _Told:
    users: tuple[GpuUser, ...]
    gpu: int | None
    time: float

    def due_after(self, told: "_Told") -> bool:
        """Whether this is to be told, where ``told`` was."""
        age = self.time - told.time
        if not 0 <= age < REFRESH_SECONDS:
            return True
        return age >= CHANGE_SECONDS_MIN and (self.users, self.gpu) != (told.users, told.gpu)


class GpuUsers:
    """Who uses the GPUs of ``node``. The sources say what they see; :meth:`changes` gives what there is to tell."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.left_out = 0
        """Processes, containers and GPUs over the limits: seen, and not told."""
        self._places: dict[Place, _Listed] = {}
        self._peers: dict[object, TrainingPeer] = {}
        self._held: dict[Origin, Mapping[str, Sequence[Holder]]] = {}
        self._processes: Mapping[int, Process] = {}
        self._told: dict[Place, _Told] = {}

    def saw_processes(
        self, uuid: str, instance: str | None, pids: Iterable[int], now: float, *, gpu: int | None = None
    ) -> None:
        """The driver lists these processes of a GPU or an instance at ``now`` (UTC seconds): all of them, or none."""
        place = Place(uuid, instance)
        if place not in self._places and len(self._places) >= PLACES_MAX:
            self.left_out += 1
            return
        listed = sorted(set(pids))
        self.left_out += max(0, len(listed) - PROCESSES_MAX)
        self._places[place] = _Listed(gpu, listed[:PROCESSES_MAX], now)

    def saw_training(self, key: object, peer: TrainingPeer) -> None:
        """A job's process has said who it is; ``key`` is its connection, for :meth:`training_ended`."""
        if len(self._peers) < PEERS_MAX:
            self._peers[key] = peer
        else:
            self.left_out += 1

    def training_ended(self, key: object) -> None:
        """The connection ``key`` is closed. It may never have said who it is."""
        self._peers.pop(key, None)

    def saw_holders(self, origin: Origin, holders: Mapping[str, Sequence[Holder]]) -> None:
        """All containers that hold GPUs, by the name that ``origin`` has for the GPU or the instance: its UUID,
        ``GPU-.../9/0``, or ``nvidia0``."""
        self.left_out += sum(max(0, len(held) - HOLDERS_MAX) for held in holders.values())
        self._held[origin] = {name: tuple(held[:HOLDERS_MAX]) for name, held in holders.items()}

    def saw_environments(self, processes: Mapping[int, Process]) -> None:
        """What is known of the processes in :attr:`pids`; of one that is missing there, nothing."""
        self._processes = processes

    @property
    def pids(self) -> frozenset[int]:
        """Every process that uses a GPU, as the driver lists them."""
        return frozenset(pid for listed in self._places.values() for pid in listed.pids)

    def users(self) -> dict[Place, tuple[GpuUser, ...]]:
        """The users of each GPU and instance: of those that the driver lists, and of others that somebody names."""
        listed, peers = self.pids, tuple(self._peers.values())
        return {place: users_of(self._known(place, peers, listed)) for place in self._all_places()}

    def changes(self, now: float) -> list[EventRow]:
        """What is to be told at ``now`` (UTC seconds): the GPUs whose users have changed, and those whose turn it is
        again."""
        for place in [place for place, listed in self._places.items() if not 0 <= now - listed.seen < FORGET_SECONDS]:
            del self._places[place]
        users = self.users()
        gone = {place: self._told.pop(place) for place in self._told.keys() - users.keys()}
        rows = [self._row(place, (), told.gpu, told.users) for place, told in gone.items() if told.users]
        for place, present in users.items():
            fresh = _Told(present, self._gpu(place), now)
            told = self._told.get(place)
            if told is None or fresh.due_after(told):
                previous = None if told is None or told.users == present else told.users
                rows.append(self._row(place, present, fresh.gpu, previous))
                self._told[place] = fresh
        return rows

    def _all_places(self) -> list[Place]:
        named = {name for place in self._places for name in self._names(place)}
        holders = (name for held in self._held.values() for name in held)
        others = dict.fromkeys([*(peer.uuid for peer in self._peers.values()), *holders])
        more = [place for name in others if name and name not in named and (place := _place_of(name)) is not None]
        room = PLACES_MAX - len(self._places)
        return [*self._places, *more[:room]]

    def _names(self, place: Place) -> list[str]:
        """As a job or a kubelet may call it: its UUID; an instance by that of its GPU and its numbers too; on GKE by
        the number of the GPU and of its GPU instance."""
        gpu = self._gpu(place)
        if place.instance is None:
            return [place.uuid] if gpu is None else [place.uuid, f"nvidia{gpu}"]
        names = [place.uuid, f"{place.uuid}/{place.instance}"]
        if gpu is not None:
            names.append(f"nvidia{gpu}/gi{place.instance.partition('/')[0]}")
            names += [f"{whole.uuid}/{place.instance}" for whole in self._places if self._is_whole(whole, gpu)]
        return names

    def _is_whole(self, place: Place, gpu: int) -> bool:
        return place.instance is None and self._gpu(place) == gpu

    def _gpu(self, place: Place) -> int | None:
        listed = self._places.get(place)
        return None if listed is None else listed.gpu

    def _known(self, place: Place, peers: Sequence[TrainingPeer], listed: frozenset[int]) -> Known:
        pids = self._places[place].pids if place in self._places else ()
        declared = [peer for peer in peers if self._declares(peer, place, self._gpu(place), listed)]
        return Known(pids, declared, self._holders(place), peers, self._processes)

    @staticmethod
    def _declares(peer: TrainingPeer, place: Place, gpu: int | None, listed: frozenset[int]) -> bool:
        """Whether a job says that this is its GPU. Its number is the job's own, and counts only where the driver does
        not list the process itself."""
        if peer.uuid is not None:
            return peer.uuid == place.uuid
        return peer.gpu is not None and peer.gpu == gpu and place.instance is None and peer.pid not in listed

    def _holders(self, place: Place) -> Sequence[Holder]:
        for origin in (Origin.POD_RESOURCES, Origin.DCGM_EXPORTER):
            held = self._held.get(origin, {})
            if found := [holder for name in self._names(place) for holder in held.get(name, ())]:
                return found
        return ()

    def _row(
        self, place: Place, users: Sequence[GpuUser], gpu: int | None, previous: Sequence[GpuUser] | None
    ) -> EventRow:
        detail: dict[str, Any] = {"instance": place.instance, **_fitting(users, previous)}
        name = place.uuid if gpu is None else f"GPU {gpu}"
        name += "" if place.instance is None else f" instance {place.instance}"
        message = f"{self.node}: {name} is used by {words(users)}"
        if previous is not None:
            message += f"; it was by {words(previous)}"
        return EventRow(EventKind.GPU_USERS, self.node, message, False, gpu, place.uuid, detail=detail)


def _place_of(name: str) -> Place | None:
    """The place of a UUID that the driver has not listed; ``None`` for a name that says nothing without the driver."""
    if name.startswith("MIG-"):
        return Place(name)
    uuid, _, instance = name.partition("/")
    return Place(uuid, instance or None) if uuid.startswith("GPU-") else None


def words(users: Sequence[GpuUser]) -> str:
    """The first of them by name, and how many more there are."""
    if not users:
        return "nobody"
    more = len(users) - WORDS_MAX
    return ", ".join(user.who() for user in users[:WORDS_MAX]) + (f" and {more} more" if more > 0 else "")


def _fitting(users: Sequence[GpuUser], previous: Sequence[GpuUser] | None) -> dict[str, Any]:
    """``users`` and, where it fits too, ``previous``; ``left_out`` counts the users that are not told."""
    told = [user.told() for user in users[:USERS_TOLD_MAX]]
    while told and _bytes(told) > DETAIL_BYTES_MAX - _FRAME_BYTES:
        told = told[: len(told) // 2]
    detail: dict[str, Any] = {"users": told, "left_out": len(users) - len(told)}
    if previous is not None:
        before = [user.told() for user in previous[:USERS_TOLD_MAX]]
        fits = _bytes(told) + _bytes(before) <= DETAIL_BYTES_MAX - _FRAME_BYTES
        detail["previous"] = before if fits else None
    return detail


def _bytes(told: Sequence[Mapping[str, Any]]) -> int:
    return len(dumps(list(told)).encode())


_FRAME_BYTES = len(json.dumps({"instance": "255/255", "users": [], "left_out": 1 << 31, "previous": []}))
