"""Who uses a GPU, as far as it is known. Pure: names, bounds, words."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from telemetry_bus.gpu_users import name_of

TEXT_BYTES_MAX = 128
"""UTF-8 bytes of each text of a user: a job's name has at most 96, a label of Kubernetes 63. A pod's name may have 253;
what is longer is cut, and the 14 texts of the longest user make 1.8 KiB."""


class Origin(StrEnum):
    """Who told of a user. The first of these that knows him is believed."""

    SDK = "sdk"
    """The job itself: its process speaks with this node's collector."""
    ENVIRONMENT = "environment"
    """What its launcher (Slurm, torchrun, MPI, Ray) has put into the process's environment."""
    POD_RESOURCES = "pod_resources"
    """The kubelet: to which container it has given the GPU."""
    DCGM_EXPORTER = "dcgm_exporter"
    """The labels of a dcgm-exporter's rows."""
    DRIVER = "driver"
    """The driver lists the process, and nobody says whose it is."""


@dataclass(frozen=True, slots=True)
class GpuUser:
    """One user of one GPU or MIG instance; ``None`` is what nobody told.

    ``pid`` is the process on the host; where several processes of one rank use the GPU it is the lowest. ``process`` is
    the kernel's name for it, of 15 characters. ``run_id`` is torchrun's.
    """

    origin: Origin
    job: str | None = None
    attempt: str | None = None
    rank: int | None = None
    local_rank: int | None = None
    world_size: int | None = None
    role: str | None = None
    pid: int | None = None
    uid: int | None = None
    process: str | None = None
    pod: str | None = None
    namespace: str | None = None
    container: str | None = None
    slurm_job_id: str | None = None
    slurm_job_name: str | None = None
    slurm_step_id: str | None = None
    run_id: str | None = None
    ray_job_id: str | None = None

    def told(self) -> dict[str, Any]:
        """What is known of him, as an event carries it: without the keys of which nothing is."""
        return {key: value for key in _FIELDS if (value := getattr(self, key)) is not None}

    def who(self) -> str:
        """A few words for a person: what is known best of job, launcher, pod and process."""
        name = name_of(self.told())
        if self.rank is not None:
            return f"{name} rank {self.rank}"
        anonymous = self == replace(GpuUser(self.origin), pid=self.pid, uid=self.uid, process=self.process)
        return f"{name} ({self.pid})" if anonymous and self.pid is not None else name


_FIELDS = tuple(field.name for field in fields(GpuUser))


def bounded(text: str) -> str | None:
    """``text`` as it may stand in an event: printable, cut to :data:`TEXT_BYTES_MAX`; ``None`` if nothing is left."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text[:TEXT_BYTES_MAX]).strip()
    return kept.encode("utf-8", "replace")[:TEXT_BYTES_MAX].decode("utf-8", "ignore") or None
