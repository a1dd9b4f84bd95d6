"""Who uses the GPUs of a node: jobs and ranks, processes, pods.

:class:`GpuUsers` is one object a node. The NVML source tells it which processes the driver lists
(``saw_processes``), the listener for the SDK which jobs speak with this node (``saw_training``, ``training_ended``),
and :class:`GpuUsersSource` what their environments and the kubelet say. What has changed becomes events: who uses a GPU
is never repeated in its rows.
"""

from collectors.gpu_users.merge import Holder, Process, TrainingPeer
from collectors.gpu_users.source import GpuUsersSource, UsersOfGpus
from collectors.gpu_users.table import GpuUsers, Place
from collectors.gpu_users.user import GpuUser, Origin

__all__ = [
    "GpuUser",
    "GpuUsers",
    "GpuUsersSource",
    "Holder",
    "Origin",
    "Place",
    "Process",
    "TrainingPeer",
    "UsersOfGpus",
]
