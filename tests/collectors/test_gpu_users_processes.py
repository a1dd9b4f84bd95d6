"""Real processes under the real `/proc`: whose they are, what is refused, and what is never kept."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.gpu_users.processes import PROC, ProcessReader, Unread, shows_host
from collectors.gpu_users.user import GpuUser, Origin
from tests.fakes.processes import running

SECRET = "hunter2-never-told"
NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process as somebody else")
on_host = pytest.mark.skipif(not shows_host(PROC), reason="this machine's /proc is that of a container")


@on_host
def test_a_running_process_is_known_by_its_environment() -> None:
    """Job and rank come out of the real /proc/PID/environ."""
    with running({"SLURM_JOB_ID": "42", "RANK": "3", "AWS_SECRET_ACCESS_KEY": SECRET}) as pid:
        look = ProcessReader(PROC, "n1").look([pid])
    process = look.known[pid]
    assert process.user == GpuUser(Origin.ENVIRONMENT, attempt="42.0", rank=3, slurm_job_id="42")
    assert (process.parent, process.uid, process.in_pod) == (os.getpid(), os.getuid(), False)
    assert process.name is not None
    assert process.name.startswith("python")
    assert not look.unread


@on_host
def test_a_secret_of_the_environment_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what is known of a process, nor the reader, nor a log has any more of it."""
    caplog.set_level(logging.DEBUG)
    reader = ProcessReader(PROC, "n1")
    with running({"RANK": "3", "WANDB_API_KEY": SECRET, "NANTUCKET_TOKEN": SECRET}) as pid:
        look = reader.look([pid])
    assert SECRET not in repr(look)
    assert SECRET not in repr(reader.__dict__)
    assert SECRET not in caplog.text


@on_host
def test_an_environment_of_a_megabyte_is_read_to_its_end() -> None:
    """What a shell's functions fill in front hides nothing behind."""
    big = {f"BASH_FUNC_f{at}": "x" * 100_000 for at in range(10)}
    with running(big | {"SLURM_JOB_ID": "7"}) as pid:
        user = ProcessReader(PROC, "n1").look([pid]).known[pid].user
    assert user is not None
    assert user.slurm_job_id == "7"


@on_host
def test_a_process_that_has_ended_is_counted_and_not_known() -> None:
    """Between the driver's list and the look a process may end."""
    with running({"RANK": "1"}) as pid:
        pass
    look = ProcessReader(PROC, "n1").look([pid])
    assert not look.known
    assert look.unread == {Unread.GONE: 1}


@on_host
def test_a_process_is_read_once_as_long_as_it_lives(tmp_path: Path) -> None:
    """The same number with the same time of start is the same process: its environment is not read again."""
    with running({"RANK": "1"}) as pid:
        reader = ProcessReader(PROC, "n1")
        first = reader.look([pid]).known[pid]
        assert reader.look([pid]).known[pid] is first


def _fake_process(folder: Path, start: int, environment: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["S", "1", *["0"] * 17, str(start), *["0"] * 30]
    (folder / "stat").write_text(f"77 (odd) name) {' '.join(words)}\n")
    (folder / "environ").write_bytes(environment)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Return a /proc of another namespace than this process's own, in files."""
    (tmp_path / "self").symlink_to("1")
    return tmp_path


def test_a_number_that_is_given_again_is_another_process(proc: Path) -> None:
    """The time of start tells two processes of one number apart."""
    reader = ProcessReader(proc, "n1")
    _fake_process(proc / "77", 1_000, b"RANK=1\0")
    first = reader.look([77]).known[77]
    _fake_process(proc / "77", 2_000, b"RANK=2\0")
    second = reader.look([77]).known[77]
    assert (first.user, second.user) == (GpuUser(Origin.ENVIRONMENT, rank=1), GpuUser(Origin.ENVIRONMENT, rank=2))
    assert first.name == "odd) name"


@pytest.mark.parametrize("stat", [b"", b"77 (x", b"77 (x) S 1", b"\xff" * 5_000, b"77 (x) S a " + b"b " * 40])
def test_a_stat_that_says_nothing_is_a_process_that_is_gone(proc: Path, stat: bytes) -> None:
    """Whatever stands in /proc, the look goes on with the next process."""
    _fake_process(proc / "77", 1, b"RANK=1\0")
    (proc / "77" / "stat").write_bytes(stat)
    _fake_process(proc / "78", 1, b"RANK=2\0")
    look = ProcessReader(proc, "n1").look([77, 78])
    assert set(look.known) == {78}
    assert look.unread == {Unread.GONE: 1}


_AS_NOBODY = """
import os, sys
from pathlib import Path
from collectors.gpu_users.processes import ProcessReader
os.setgid(65534); os.setuid(65534)
look = ProcessReader(Path("/proc"), "n1").look([int(sys.argv[1])])
print(dict(look.unread), [(p.uid, p.user, p.name is None) for p in look.known.values()])
"""


@as_root
@on_host
def test_another_user_s_process_is_known_by_name_and_counted() -> None:
    """Without the right to look into it, it is still told that there is one, and why no more is known."""
    with running({"RANK": "1"}) as pid:
        answer = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(pid)], capture_output=True, text=True, check=True
        ).stdout
    assert answer == "{<Unread.NOT_PERMITTED: 'not_permitted'>: 1} [(0, None, False)]\n"


_IN_NAMESPACE = """
import sys
from pathlib import Path
from collectors.gpu_users.processes import PROC, ProcessReader, shows_host
print(shows_host(PROC), dict(ProcessReader(PROC, "n1").look([1, 2, 3]).unread))
look = ProcessReader(Path(sys.argv[1]), "n1").look([int(sys.argv[2])])
print(dict(look.unread), [(p.pid, p.user.rank) for p in look.known.values()])
"""
_ENTER = 'mount --bind /proc "$1" && exec unshare --pid --fork --mount-proc "$2" -c "$3" "$1" "$4"'


@as_root
@on_host
def test_in_a_namespace_of_its_own_the_host_s_proc_is_needed(tmp_path: Path) -> None:
    """The driver's number 1 is not this container's number 1: nothing is read, unless the host's /proc is mounted."""
    with running({"RANK": "5"}) as pid:
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            _ENTER,
            "sh",
            str(tmp_path),
            sys.executable,
            _IN_NAMESPACE,
            str(pid),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in answer.stderr or "mount" in answer.stderr:
        pytest.skip(f"this machine gives no namespace: {answer.stderr}")
    assert answer.stdout == f"False {{<Unread.HIDDEN: 'hidden'>: 3}}\n{{}} [({pid}, 5)]\n"


def test_without_a_proc_nothing_is_known(tmp_path: Path) -> None:
    """A root that is not there is no host's."""
    assert not shows_host(tmp_path / "none")


def test_a_proc_of_an_outer_namespace_is_the_host_s(proc: Path) -> None:
    """A container that has the host's /proc at another place reads that: it has another number there."""
    assert shows_host(proc)
