"""The users of one GPU, made of what each origin knows. Pure.

A process that the driver lists is looked up first among the jobs that speak with this collector: by its number, by
that of its parent, and by the attempt and rank that its launcher gave it, which are what the SDK calls itself by. Next
comes its environment. Last comes the pod to which the kubelet gave the GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from collectors.gpu_users.user import GpuUser, Origin


@dataclass(frozen=True, slots=True)
class TrainingPeer:
    """A job's process that speaks with this collector: what its hello said, and who it is to the kernel.

    ``pid`` is ``None`` on a port, and where the process is in no namespace that this collector sees.
    """

    job: str
    attempt: str
    rank: int
    world_size: int | None = None
    role: str | None = None
    uuid: str | None = None
    gpu: int | None = None
    pid: int | None = None
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this node. ``user`` is what its environment names, ``in_pod`` whether it runs in Kubernetes; both
    are ``None`` where its environment cannot be read.
    """

    pid: int
    parent: int | None = None
    uid: int | None = None
    name: str | None = None
    user: GpuUser | None = None
    in_pod: bool | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A container to which a GPU was given."""

    pod: str
    namespace: str | None = None
    container: str | None = None
    origin: Origin = Origin.POD_RESOURCES


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that is known of one GPU or instance: the processes that the driver lists, who says that it is his,
    who speaks with the collector, and who holds it.
    """

    pids: Sequence[int] = ()
    declared: Sequence[TrainingPeer] = ()
    holders: Sequence[Holder] = ()
    peers: Sequence[TrainingPeer] = ()
    processes: Mapping[int, Process] = field(default_factory=dict)


def users_of(known: Known) -> tuple[GpuUser, ...]:
    """Its users, each once: those with a process first, by its number."""
    by_pid = {peer.pid: peer for peer in known.peers if peer.pid is not None}
    by_rank = {(peer.attempt, peer.rank): peer for peer in known.peers}
    found: dict[object, GpuUser] = {}
    joined: set[TrainingPeer] = set()
    held: set[Holder] = set()
    for pid in sorted(known.pids):
        process = known.processes.get(pid) or Process(pid)
        peer = _peer_of(process, by_pid, by_rank)
        holder = _holder_of(process, known.holders)
        joined |= {peer} if peer is not None else set()
        held |= {holder} if holder is not None else set()
        user = _with_holder(_user(process, peer), holder)
        found.setdefault(_identity(user), user)
    for peer in known.declared:
        if peer not in joined:
            user = _with_peer(GpuUser(Origin.SDK, pid=peer.pid, uid=peer.uid), peer)
            found.setdefault(_identity(user), user)
    alone = [_with_holder(GpuUser(holder.origin), holder) for holder in known.holders if holder not in held]
    return (*found.values(), *alone)


def _peer_of(
    process: Process, by_pid: Mapping[int, TrainingPeer], by_rank: Mapping[tuple[str, int], TrainingPeer]
) -> TrainingPeer | None:
    if (peer := by_pid.get(process.pid)) is not None:
        return peer
    user = process.user
    if user is not None and user.attempt is not None and user.rank is not None:
        peer = by_rank.get((user.attempt, user.rank))
        if peer is not None and user.job in {None, peer.job}:
            return peer
    parent = None if process.parent is None else by_pid.get(process.parent)
    # A launcher that speaks with us is not its ranks.
    same = user is None or user.rank is None or (parent is not None and user.rank == parent.rank)
    return parent if same else None


def _user(process: Process, peer: TrainingPeer | None) -> GpuUser:
    named = process.user or GpuUser(Origin.DRIVER)
    user = replace(named, pid=process.pid, uid=process.uid, process=process.name)
    return user if peer is None else _with_peer(user, peer)


def _with_peer(user: GpuUser, peer: TrainingPeer) -> GpuUser:
    """The job's own word is kept before the launcher's; what it does not say is the launcher's."""
    return replace(
        user,
        origin=Origin.SDK,
        job=peer.job,
        attempt=peer.attempt,
        rank=peer.rank,
        world_size=user.world_size if peer.world_size is None else peer.world_size,
        role=peer.role,
        uid=peer.uid if user.uid is None else user.uid,
    )


def _holder_of(process: Process, holders: Sequence[Holder]) -> Holder | None:
    """The container that it runs in: the one of its name, or the only one that holds the GPU."""
    if process.in_pod is False or not holders:
        return None
    pod = None if process.user is None else process.user.pod
    same = [holder for holder in holders if holder.pod == pod]
    if len(same) == 1:
        return same[0]
    return holders[0] if len(holders) == 1 else None


def _with_holder(user: GpuUser, holder: Holder | None) -> GpuUser:
    if holder is None:
        return user
    origin = holder.origin if user.origin is Origin.DRIVER else user.origin
    return replace(user, origin=origin, pod=holder.pod, namespace=holder.namespace, container=holder.container)


def _identity(user: GpuUser) -> object:
    """What two processes share that are one user: the job (or its launcher's name for it) and the rank."""
    name = (user.job, user.attempt, user.slurm_job_id, user.run_id, user.ray_job_id)
    return user.pid if user.rank is None or name == (None,) * len(name) else (*name, user.rank)
