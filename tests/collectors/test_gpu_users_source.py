"""The source of users: real processes, a real gRPC server, and what is said of what cannot be read."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import FieldFailure, SourceClosed
from collectors.gpu_users import GpuUsers, Holder, Origin, UsersOfGpus
from collectors.gpu_users.processes import PROC, shows_host
from collectors.gpu_users.source import BACKOFF_MAX_SECONDS, LOOK_SECONDS, GpuUsersSource
from collectors.one_look import OneLook
from telemetry_bus.runtime.clock import ManualClock
from tests.fakes.pod_resources import answer, kubelet, pod
from tests.fakes.processes import running

NOW = 1_700_000_000.0
GPU = "GPU-6f1a2b3c-0000-1111-2222-333344445555"
on_host = pytest.mark.skipif(not shows_host(PROC), reason="this machine's /proc is that of a container")


def source(folder: Path, users: GpuUsers, **options: Any) -> tuple[GpuUsersSource, ManualClock]:
    """A source whose kubelet is in ``folder``, with its clock."""
    clock = ManualClock()
    settings: dict[str, Any] = {"socket": folder / "k.sock", "in_pod": False} | options
    return UsersOfGpus("n1", users, **settings).build(clock), clock


@on_host
async def test_a_gpu_s_process_is_told_with_its_job_and_its_pod(tmp_path: Path) -> None:
    """What the driver lists, the process's environment and the kubelet become one user in one event."""
    users = GpuUsers("n1")
    opened, _ = source(tmp_path, users)
    environment = {"SLURM_JOB_ID": "42", "RANK": "3", "KUBERNETES_SERVICE_HOST": "1", "HOSTNAME": "trainer-0"}
    with kubelet(tmp_path / "k.sock") as server, running(environment) as pid:
        server.body = answer(pod("trainer-0", [GPU]))
        users.saw_processes(GPU, None, [pid], NOW, gpu=0)
        async with opened:
            reading = await opened.read(NOW)
            again = await opened.read(NOW + 10.0)
    (event,) = reading.events
    (user,) = event.detail["users"]
    assert {"slurm_job_id": "42", "rank": 3, "pid": pid, "uid": os.getuid()}.items() <= user.items()
    assert {"pod": "trainer-0", "namespace": "ml", "container": "main", "origin": "environment"}.items() <= user.items()
    assert not again.events
    assert not reading.failures
    assert opened.unreadable() == []


async def test_outside_kubernetes_no_kubelet_is_missed(tmp_path: Path) -> None:
    """A node of Slurm has no such socket, and that is no fault."""
    opened, _ = source(tmp_path, GpuUsers("n1"))
    async with opened:
        reading = await opened.read(NOW)
    assert not reading.failures
    assert opened.unreadable() == []


async def test_in_a_pod_a_kubelet_that_does_not_answer_is_said_with_what_to_do(tmp_path: Path) -> None:
    """Counted, and in words for a person."""
    opened, _ = source(tmp_path, GpuUsers("n1"), in_pod=True)
    async with opened:
        reading = await opened.read(NOW)
    assert reading.failures == {("gpu_users_pods", FieldFailure.NO_ANSWER): 1}
    (said,) = opened.unreadable()
    assert "k.sock" in said
    assert "mount the folder" in said


async def test_a_kubelet_that_is_away_is_asked_ever_more_rarely_and_its_pods_stand(tmp_path: Path) -> None:
    """A kubelet restarts on every update while the pods run on; when it is back its word counts again."""
    users = GpuUsers("n1")
    users.saw_processes(GPU, None, [], NOW, gpu=0)
    opened, clock = source(tmp_path, users, in_pod=True)
    async with opened:
        with kubelet(tmp_path / "k.sock") as server:
            server.body = answer(pod("trainer-0", [GPU]))
            (event,) = (await opened.read(NOW)).events
            assert event.detail["users"][0]["pod"] == "trainer-0"
            for _ in range(2):
                clock.advance(10.0)
                await opened.read(NOW)
            assert len(server.asked) == 1
        clock.advance(10.0)
        asked = []
        for second in range(0, 200, 10):
            if (await opened.read(NOW + second)).failures:
                asked.append(second)
            clock.advance(10.0)
        assert asked == [0, 10, 30, 70, 130, 190]
        assert BACKOFF_MAX_SECONDS == 60.0
        assert [user.pod for found in users.users().values() for user in found] == ["trainer-0"]
        clock.advance(60.0)
        with kubelet(tmp_path / "k.sock") as server:
            server.body = answer()
            (event,) = (await opened.read(NOW + 200.0)).events
    assert event.detail["users"] == []
    assert opened.unreadable() == []


async def test_processes_that_are_hidden_are_counted_and_said(tmp_path: Path) -> None:
    """In a container of its own the remedy is named."""
    users = GpuUsers("n1")
    users.saw_processes(GPU, None, [1, 2], NOW, gpu=0)
    opened, _ = source(tmp_path, users, proc=tmp_path)
    async with opened:
        reading = await opened.read(NOW)
    assert reading.failures == {("gpu_users", FieldFailure.UNSUPPORTED): 2}
    (said,) = opened.unreadable()
    assert "2 processes" in said
    assert "hostPID" in said
    assert [user["origin"] for user in reading.events[0].detail["users"]] == ["driver", "driver"]


@pytest.mark.parametrize("closed", ["before", "after"])
async def test_it_is_read_only_while_it_is_open(tmp_path: Path, closed: str) -> None:
    """A source lives inside its `async with`, and may be closed twice."""
    opened, _ = source(tmp_path, GpuUsers("n1"))
    if closed == "after":
        async with opened:
            pass
        await opened.__aexit__(None, None, None)
    with pytest.raises(SourceClosed):
        await opened.read(NOW)


async def test_a_look_that_hangs_is_left_alone_and_no_other_is_begun() -> None:
    """A process that holds its memory's lock for ever stops nobody, and takes one thread."""
    hold, begun = threading.Event(), []

    def look() -> int:
        begun.append(1)
        hold.wait()
        return 7

    one = OneLook[int]("test-look")
    with pytest.raises(TimeoutError):
        await one.take(look, 0.01)
    with pytest.raises(TimeoutError):
        await one.take(look, LOOK_SECONDS)
    assert len(begun) == 1
    hold.set()
    while one.stuck:
        await asyncio.sleep(0)
    assert await one.take(look, LOOK_SECONDS) == 7


async def test_what_a_look_raises_is_raised_where_it_was_asked_for() -> None:
    """Nothing is swallowed in a thread."""
    with pytest.raises(ZeroDivisionError):
        await OneLook[float]("test-look").take(lambda: 1 / 0, LOOK_SECONDS)


async def test_a_process_that_hangs_is_told_by_its_number_alone(tmp_path: Path) -> None:
    """A pipe that nobody writes to stands for an environment that is never given: the events go on."""
    (tmp_path / "self").symlink_to("1")
    folder = tmp_path / "77"
    folder.mkdir()
    (folder / "stat").write_text("77 (x) S 1 " + "0 " * 17 + "5 " + "0 " * 30)
    os.mkfifo(folder / "environ")
    users = GpuUsers("n1")
    users.saw_processes(GPU, None, [77], NOW, gpu=0)
    users.saw_holders(Origin.DCGM_EXPORTER, {GPU: [Holder("p", origin=Origin.DCGM_EXPORTER)]})
    opened, _ = source(tmp_path, users, proc=tmp_path, look_seconds=0.05)
    async with opened:
        reading = await opened.read(NOW)
        (said,) = opened.unreadable()
        (folder / "environ").open("wb").close()
    assert reading.failures == {("gpu_users", FieldFailure.NO_ANSWER): 1}
    assert "environ hangs" in said
    (event,) = reading.events
    assert [user["pid"] for user in event.detail["users"]] == [77]
