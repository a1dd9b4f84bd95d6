"""A kubelet's pod-resources service: a real gRPC server on a Unix socket, with messages of the real schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "v1.PodResourcesLister"
_FIELD = descriptor_pb2.FieldDescriptorProto
# Of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto: (name, number, type), "*" for a repeated field.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ListPodResourcesRequest": [],
    "ListPodResourcesResponse": [("*pod_resources", 1, "PodResources")],
    "PodResources": [("name", 1, "string"), ("namespace", 2, "string"), ("*containers", 3, "ContainerResources")],
    "ContainerResources": [
        ("name", 1, "string"),
        ("*devices", 2, "ContainerDevices"),
        ("*cpu_ids", 3, "int64"),
        ("*memory", 4, "ContainerMemory"),
    ],
    "ContainerMemory": [("memory_type", 1, "string"), ("size", 2, "uint64"), ("topology", 3, "TopologyInfo")],
    "ContainerDevices": [
        ("resource_name", 1, "string"),
        ("*device_ids", 2, "string"),
        ("topology", 3, "TopologyInfo"),
    ],
    "TopologyInfo": [("*nodes", 1, "NUMANode")],
    "NUMANode": [("ID", 1, "int64")],
}
_SCALARS = {"string": _FIELD.TYPE_STRING, "int64": _FIELD.TYPE_INT64, "uint64": _FIELD.TYPE_UINT64}


def _schema() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="api.proto", package="v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text, number, kind in fields:
            label = _FIELD.LABEL_REPEATED if text.startswith("*") else _FIELD.LABEL_OPTIONAL
            added = message.field.add(name=text.removeprefix("*"), number=number, label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".v1.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"v1.{name}") for name in _MESSAGES}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


MESSAGES = _schema()


def pod(name: str, devices: Sequence[str], *, resource: str = "nvidia.com/gpu", namespace: str = "ml") -> Any:
    """A pod whose container ``main`` holds ``devices``, as a kubelet tells it: with its CPUs, memory and topology."""
    topology = MESSAGES["TopologyInfo"](nodes=[MESSAGES["NUMANode"](ID=1)])
    held = MESSAGES["ContainerDevices"](resource_name=resource, device_ids=devices, topology=topology)
    memory = MESSAGES["ContainerMemory"](memory_type="memory", size=1 << 40, topology=topology)
    main = MESSAGES["ContainerResources"](name="main", devices=[held], cpu_ids=range(400), memory=[memory])
    idle = MESSAGES["ContainerResources"](name="sidecar")
    return MESSAGES["PodResources"](name=name, namespace=namespace, containers=[idle, main])


def answer(*pods: Any) -> bytes:
    """A kubelet's answer."""
    body: bytes = MESSAGES["ListPodResourcesResponse"](pod_resources=pods).SerializeToString()
    return body


@dataclass
class Kubelet:
    """What it answers next; ``refusal`` is a gRPC status and a message."""

    body: bytes = b""
    refusal: tuple[Any, str] | None = None
    asked: list[bytes] = field(default_factory=list)

    def list(self, request: bytes, context: Any) -> bytes:
        """Answer ``List``."""
        self.asked.append(request)
        if self.refusal is not None:
            context.abort(*self.refusal)
        return self.body


@contextmanager
def kubelet(socket: Path) -> Iterator[Kubelet]:
    """A kubelet that listens at ``socket``."""
    keeper = Kubelet()
    same: Callable[[bytes], bytes] = bytes
    handler = grpc.unary_unary_rpc_method_handler(keeper.list, same, same)
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"List": handler}),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield keeper
    finally:
        server.stop(None).wait()
