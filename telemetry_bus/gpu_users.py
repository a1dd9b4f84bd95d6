"""What an event of the kind ``gpu_users`` says: its keys, how a reader checks them, and a user in words.

Its ``detail`` is ``{"instance": text or null, "users": [...], "left_out": count, "previous": [...] or null}``; a user
is an object of :data:`TEXTS` and :data:`NUMBERS`, in which a key of which nothing is known is missing. Nothing of it is
believed before it is checked: an event may come from anybody who may write to the bus.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry_bus.frames import Frame
from telemetry_bus.schemas import EventKind

TEXTS = (
    *("origin", "job", "attempt", "role", "process", "pod", "namespace", "container"),
    *("slurm_job_id", "slurm_job_name", "slurm_step_id", "run_id", "ray_job_id"),
)
NUMBERS = ("rank", "local_rank", "world_size", "pid", "uid")
KEYS = (*TEXTS, *NUMBERS)
TEXT_MAX = 256
"""Characters of a text; a collector sends 128 bytes."""
INT64_END = 1 << 63


@dataclass(frozen=True, slots=True)
class UsersTold:
    """One event, checked. ``users`` have the keys that are known; ``left_out`` counts those that were not told, or that
    are no users.
    """

    time: float
    node: str
    gpu: int | None
    uuid: str
    instance: str | None
    users: Sequence[Mapping[str, Any]]
    left_out: int


def users_told(frame: Frame) -> list[UsersTold | None]:
    """The events of users in an ``event/1`` frame, in order; ``None`` for each that says nothing."""
    kinds = frame.strings("kind")
    at = [row for row, kind in enumerate(kinds) if kind == EventKind.GPU_USERS]
    if not at:
        return []
    times = frame.times()
    rows = frame.batch.select(["node", "gpu", "uuid", "detail"]).take(at).to_pylist()
    return [_told(row, float(time)) for row, time in zip(rows, times[at], strict=True)]


def _told(row: Mapping[str, Any], time: float) -> UsersTold | None:
    node, uuid = row["node"], row["uuid"]
    try:
        detail = json.loads(row["detail"] or "")
        instance, users, left_out = detail.get("instance"), detail["users"], detail.get("left_out", 0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if node is None or not is_text(uuid) or not isinstance(users, list) or not (instance is None or is_text(instance)):
        return None
    checked = [_checked(user) for user in users if isinstance(user, dict)]
    more = left_out if type(left_out) is int and 0 <= left_out < INT64_END else 0
    return UsersTold(time, node, row["gpu"], uuid, instance, checked, more + len(users) - len(checked))


def _checked(user: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a user's keys, in order; a value that is none of its kind is absent."""
    texts = {key: user[key] for key in TEXTS if is_text(user.get(key))}
    numbers = {key: user[key] for key in NUMBERS if type(user.get(key)) is int and 0 <= user[key] < INT64_END}
    return texts | numbers


def is_text(value: object) -> bool:
    """Whether ``value`` may be shown as a text of a user."""
    return isinstance(value, str) and 0 < len(value) <= TEXT_MAX and value.isprintable()


def name_of(user: Mapping[str, Any]) -> str:
    """What is known best of a user: the job, the launcher's name for it, the pod, or the process."""
    if (job := user.get("job")) is not None:
        return str(job)
    if (slurm := user.get("slurm_job_id")) is not None:
        called = user.get("slurm_job_name")
        return f"Slurm job {slurm}" if called is None else f"Slurm job {slurm} {called}"
    for key, words in (("run_id", "run"), ("ray_job_id", "Ray job")):
        if user.get(key) is not None:
            return f"{words} {user[key]}"
    if (pod := user.get("pod")) is not None:
        return f"pod {pod}" if user.get("namespace") is None else f"pod {user['namespace']}/{pod}"
    return str(user.get("process", "a process"))
