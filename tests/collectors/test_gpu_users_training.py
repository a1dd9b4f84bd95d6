"""What the listener for the SDK says of who speaks with it: over real sockets, by real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from collectors.credentials import JobCredentials, job_token
from collectors.gpu_users import GpuUser, GpuUsers, Origin
from collectors.training import TrainingListener
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.runtime.secret import Secret
from tests.sdk.recorder import Client, Recorder, rows, start_job

NOW = 1_700_000_000.0
GPU = "GPU-6f1a2b3c-0000-1111-2222-333344445555"
CREDENTIALS = JobCredentials(Secret(bytes(range(32))))


@asynccontextmanager
async def listening(folder: Path, users: GpuUsers) -> AsyncIterator[TrainingListener]:
    """Open a listener on a socket and a port, which tells ``users``."""
    places = {"unix_path": folder / "c.sock", "tcp": ("127.0.0.1", 0), "credentials": CREDENTIALS}
    async with TrainingListener(Recorder().publish, ManualClock(), node="n1", users=users, **places) as listener:  # type: ignore[arg-type]
        yield listener


def found(users: GpuUsers) -> list[GpuUser]:
    """All users of all GPUs."""
    return [user for told in users.users().values() for user in told]


async def until(users: GpuUsers, origins: list[Origin]) -> None:
    """Wait until the users are of these origins."""
    while [user.origin for user in found(users)] != origins:
        await asyncio.sleep(0.005)


async def test_a_real_job_s_process_on_the_driver_s_list_is_its_rank(tmp_path: Path) -> None:
    """The kernel says which process speaks: that joins the job to the GPU, and its end ends it."""
    users = GpuUsers("n1")
    async with listening(tmp_path, users):
        environment = {"NANTUCKET_URL": f"unix://{tmp_path / 'c.sock'}", "RANK": "5", "SLURM_JOB_ID": "42"}
        job = await start_job("run = nantucket.init('llama'); run.log(1, loss=1.0); time.sleep(60)", environment)
        try:
            users.saw_processes(GPU, None, [job.pid], NOW, gpu=0)
            await until(users, [Origin.SDK])
            (user,) = found(users)
        finally:
            job.kill()
            await job.communicate()
        assert (user.job, user.attempt, user.rank, user.pid, user.uid) == ("llama", "42.0", 5, job.pid, os.getuid())
        await until(users, [Origin.DRIVER])


async def test_on_a_port_the_job_s_own_word_is_all_there_is(tmp_path: Path) -> None:
    """No process is known at the other end of a port; the UUID that the job says joins it."""
    users = GpuUsers("n1")
    async with listening(tmp_path, users) as listener:
        assert listener.tcp_address is not None
        client = await Client.tcp(listener.tcp_address)
        await client.greet(token=job_token(bytes(range(32)), "j"), uuid=GPU, world_size=8, role="rollout")
        client.send(rows(0))
        assert (await client.answer())["type"] == "ack"
        assert found(users) == [GpuUser(Origin.SDK, job="j", attempt="a", rank=0, world_size=8, role="rollout")]
        await client.close()
        await until(users, [])


async def test_who_never_says_hello_is_nobody(tmp_path: Path) -> None:
    """A connection that is refused leaves nothing behind."""
    users = GpuUsers("n1")
    async with listening(tmp_path, users) as listener:
        assert listener.unix_path is not None
        client = await Client.unix(listener.unix_path)
        await client.greet(rank=-1, uuid=GPU)
        assert (await client.answer())["type"] == "refuse"
        await client.close()
        assert found(users) == []


_IN_NAMESPACE = """
import asyncio, os, sys
from pathlib import Path
from collectors.gpu_users import GpuUsers
from tests.collectors.test_gpu_users_training import GPU, NOW, Client, found, listening, rows

async def main():
    users = GpuUsers("n1")
    users.saw_processes(GPU, None, [os.getpid()], NOW, gpu=0)
    async with listening(Path(sys.argv[1]), users) as listener:
        client = await Client.unix(listener.unix_path)
        await client.greet()
        client.send(rows(0))
        await client.answer()
        print([(user.origin.value, user.job) for user in found(users)])
        await client.close()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace")
def test_in_a_namespace_of_its_own_a_number_joins_nothing(tmp_path: Path) -> None:
    """The kernel gives this container's number of a process; the driver's list has the host's, and the two may agree by
    chance."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _IN_NAMESPACE, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if "unshare" in answer.stderr:
        pytest.skip(f"this machine gives no namespace: {answer.stderr}")
    assert answer.stdout == "[('driver', None)]\n", answer.stderr
