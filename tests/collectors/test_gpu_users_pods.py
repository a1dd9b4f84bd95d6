"""The kubelet's list of pods over a real gRPC server, and what is no list."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.errors import CallFailed
from collectors.gpu_users import Holder
from collectors.gpu_users.grpc_call import ANSWER_BYTES_MAX, call
from collectors.gpu_users.pod_resources import HELD_MAX, METHOD, holders_in, list_holders
from collectors.gpu_users.wire_format import parts
from tests.fakes.pod_resources import MESSAGES, answer, kubelet, pod

GPU = "GPU-6f1a2b3c-0000-1111-2222-333344445555"
MIG = "MIG-0c9b8a7d-0000-1111-2222-333344445555"


def test_a_real_server_s_list_says_which_container_holds_which_gpu(tmp_path: Path) -> None:
    """GPUs, MIG instances and replicas by their UUIDs; other makers' devices are none."""
    with kubelet(tmp_path / "k.sock") as server:
        server.body = answer(
            pod("trainer-0", [GPU, "GPU-b"]),
            pod("notebook", [MIG], resource="nvidia.com/mig-1g.10gb", namespace="dev"),
            pod("shared-a", ["GPU-c::0"], resource="nvidia.com/gpu.shared"),
            pod("shared-b", ["GPU-c::1", "GPU-c::2"], resource="nvidia.com/gpu.shared"),
            pod("gke", ["nvidia0/vgpu1"]),
            pod("network", ["0000:1b:00.0"], resource="mellanox.com/hca"),
        )
        held = list_holders(tmp_path / "k.sock")
        assert server.asked == [b""]
    assert held == {
        GPU: [Holder("trainer-0", "ml", "main")],
        "GPU-b": [Holder("trainer-0", "ml", "main")],
        MIG: [Holder("notebook", "dev", "main")],
        "GPU-c": [Holder("shared-a", "ml", "main"), Holder("shared-b", "ml", "main")],
        "nvidia0": [Holder("gke", "ml", "main")],
    }


def test_a_list_larger_than_a_window_comes_whole(tmp_path: Path) -> None:
    """HTTP/2 stops after 64 KiB until it is told that they were read."""
    with kubelet(tmp_path / "k.sock") as server:
        server.body = answer(*(pod(f"pod-{at}", [f"GPU-{at}"]) for at in range(800)))
        assert len(server.body) > 500_000
        assert len(list_holders(tmp_path / "k.sock")) == 800


def test_a_node_without_pods_holds_nothing(tmp_path: Path) -> None:
    """An empty message is an answer."""
    with kubelet(tmp_path / "k.sock"):
        assert list_holders(tmp_path / "k.sock") == {}


def test_what_the_server_refuses_is_said_with_its_words(tmp_path: Path) -> None:
    """An older kubelet, or one that does not want to, answers with a status."""
    path = tmp_path / "k.sock"
    with kubelet(path) as server:
        server.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit, try later")
        with pytest.raises(CallFailed, match="gRPC status 8: rejected by rate limit, try later"):
            list_holders(path)
        with pytest.raises(CallFailed, match="gRPC status 12"):
            call(path, "/v2.PodResourcesLister/List", b"")


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Without a kubelet there is no socket."""
    with pytest.raises(CallFailed, match=r"k\.sock for /v1\.PodResourcesLister/List: .*No such file"):
        list_holders(tmp_path / "k.sock")


def test_an_answer_over_the_limit_is_not_held(tmp_path: Path) -> None:
    """A server that answers without end fills nobody's memory."""
    with kubelet(tmp_path / "k.sock") as server:
        server.body = bytes(ANSWER_BYTES_MAX + 1)
        with pytest.raises(CallFailed, match="more than 4194304 bytes"):
            list_holders(tmp_path / "k.sock")


def _serving(path: Path, serve: Callable[[socket.socket], object]) -> threading.Thread:
    """One connection, served by ``serve``."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def work() -> None:
        with listening, listening.accept()[0] as connection:
            serve(connection)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _until_closed(connection: socket.socket, first: bytes = b"") -> None:
    connection.sendall(first)
    while connection.recv(65_536):
        pass


def _another_protocol(connection: socket.socket) -> None:
    _until_closed(connection, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)


def _no_frames(connection: socket.socket) -> None:
    _until_closed(connection, b"\0\0\x01\0\0\0\0\0\x01x")


def _flood(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall(b"\xff" * 65_536)


@pytest.mark.parametrize(
    ("serve", "found"),
    [
        pytest.param(_until_closed, r"none within 0\.2 s", id="silent"),
        pytest.param(_another_protocol, r"none within 0\.2 s", id="another protocol"),
        pytest.param(_no_frames, "no HTTP/2", id="frames of no kind"),
        pytest.param(_flood, "more than 8388608 bytes", id="a flood"),
        pytest.param(lambda c: c.recv(1), "closed before|Connection reset|Broken pipe", id="hangs up"),
    ],
)
def test_a_server_that_is_no_kubelet_is_said(
    tmp_path: Path, serve: Callable[[socket.socket], object], found: str
) -> None:
    """Whatever answers on the socket, the call ends in time and says what it found."""
    thread = _serving(tmp_path / "k.sock", serve)
    seconds = 0.2 if "none within" in found else 30.0
    with pytest.raises(CallFailed, match=found):
        call(tmp_path / "k.sock", METHOD, b"", seconds=seconds)
    thread.join()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a", id="a length is missing"),
        pytest.param(b"\x0a\x7fxx", id="fewer bytes than announced"),
        pytest.param(b"\xff" * 11, id="a number without end"),
        pytest.param(b"\x0b", id="a group, which proto3 has not"),
        pytest.param(b"\x0a\x02\x1a\x09", id="broken inside"),
    ],
)
def test_what_is_no_message_is_refused(tmp_path: Path, body: bytes) -> None:
    """A broken answer is an error with words, and no half of a list."""
    with kubelet(tmp_path / "k.sock") as server:
        server.body = body
        with pytest.raises(CallFailed, match="no list of pods"):
            list_holders(tmp_path / "k.sock")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_list_or_a_refusal(body: bytes) -> None:
    """Hostile bytes end in a ValueError at worst."""
    try:
        holders_in(body)
    except ValueError:
        return
    assert all(number >= 0 for number, _ in parts(memoryview(body)))


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=30)


@given(st.dictionaries(NAMES, st.lists(NAMES, max_size=4, unique=True), max_size=4))
def test_what_the_library_writes_is_read(pods: dict[str, list[str]]) -> None:
    """Names in any script come through as protobuf wrote them."""
    held = holders_in(answer(*(pod(name, devices) for name, devices in pods.items())))
    found = {(device, holder.pod) for device, holders in held.items() for holder in holders}
    assert found == {(device, name) for name, devices in pods.items() for device in devices}


def test_a_list_without_end_is_bounded() -> None:
    """Of a kubelet that lists more than a node can have, the first are kept."""
    held = holders_in(answer(pod("p", [f"GPU-{at}" for at in range(HELD_MAX + 10)])))
    assert len(held) == HELD_MAX


def test_unknown_fields_are_passed_over() -> None:
    """A newer kubelet tells more."""
    more = MESSAGES["ContainerMemory"](memory_type="x", size=7).SerializeToString()
    body = answer(pod("p", [GPU])) + b"\x7a" + bytes([len(more)]) + more + b"\x80\x01\x05\x8d\x01\0\0\0\0"
    assert holders_in(body) == {GPU: [Holder("p", "ml", "main")]}


def test_a_node_without_a_kubelet_does_not_load_http2() -> None:
    """What a plain node does not need takes none of its memory."""
    check = "import sys, collectors.gpu_users.pod_resources; print('h2' in sys.modules, 'google' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert told == "False False\n"
