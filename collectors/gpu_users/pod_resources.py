"""Which container holds which GPU, as the kubelet of this node tells on its pod-resources socket.

Source: k8s.io/kubelet/pkg/apis/podresources/v1/api.proto, ``PodResourcesLister.List``. GPUs that a DRA driver hands out
are not in this list by a UUID, and are not read.
"""

from pathlib import Path

from collectors.errors import CallFailed
from collectors.gpu_users.merge import Holder
from collectors.gpu_users.user import bounded
from collectors.gpu_users.wire_format import parts

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
METHOD = "/v1.PodResourcesLister/List"
RESOURCES = "nvidia.com/"
"""``nvidia.com/gpu``, ``nvidia.com/gpu.shared``, ``nvidia.com/mig-1g.10gb``, and what a site calls them behind it."""
HELD_MAX = 4_096
"""16 GPUs, each shared by 250 pods."""
_PODS = 1
_POD_NAME, _POD_NAMESPACE, _POD_CONTAINERS = 1, 2, 3
_CONTAINER_NAME, _CONTAINER_DEVICES = 1, 2
_DEVICE_RESOURCE, _DEVICE_IDS = 1, 2


def list_holders(socket: Path) -> dict[str, list[Holder]]:
    """The containers of this node by the GPUs that they hold. Blocks. Raises :class:`~collectors.errors.CallFailed`."""
    from collectors.gpu_users.grpc_call import call  # noqa: PLC0415  HTTP/2 only where there is a kubelet

    answer = call(socket, METHOD, b"")
    try:
        return holders_in(answer)
    except ValueError as error:
        raise CallFailed(str(socket), METHOD, f"what is no list of pods: {error}") from error


def holders_in(answer: bytes) -> dict[str, list[Holder]]:
    """The containers in a ``ListPodResourcesResponse``, at most :data:`HELD_MAX`. Raises ``ValueError``."""
    held: dict[str, list[Holder]] = {}
    room = HELD_MAX
    for number, pod in parts(memoryview(answer)):
        if number != _PODS:
            continue
        for device, holder in _of_pod(pod):
            if room > 0:
                held.setdefault(device, []).append(holder)
                room -= 1
    return {device: list(dict.fromkeys(holders)) for device, holders in held.items()}


def _of_pod(pod: memoryview) -> list[tuple[str, Holder]]:
    name = namespace = None
    containers = []
    for number, content in parts(pod):
        if number == _POD_NAME:
            name = _text(content)
        elif number == _POD_NAMESPACE:
            namespace = _text(content)
        elif number == _POD_CONTAINERS:
            containers.append(_container(content))
    if name is None:
        return []
    return [(device, Holder(name, namespace, container)) for container, devices in containers for device in devices]


def _container(message: memoryview) -> tuple[str | None, list[str]]:
    name = None
    devices: list[str] = []
    for number, content in parts(message):
        if number == _CONTAINER_NAME:
            name = _text(content)
        elif number == _CONTAINER_DEVICES:
            devices += _devices(content)
    return name, devices


def _devices(message: memoryview) -> list[str]:
    fields = list(parts(message))
    resource = next((_text(content) for number, content in fields if number == _DEVICE_RESOURCE), None)
    if resource is None or not resource.startswith(RESOURCES):
        return []
    names = (_text(content) for number, content in fields if number == _DEVICE_IDS)
    return [device_of(name) for name in names if name is not None]


def device_of(name: str) -> str:
    """The GPU or instance behind a device's name: of a replica (``GPU-...::3``, GKE's ``nvidia0/vgpu3``) the shared
    one."""
    return name.partition("::")[0].partition("/vgpu")[0]


def _text(content: memoryview) -> str | None:
    return bounded(bytes(content).decode("utf-8", "replace"))
