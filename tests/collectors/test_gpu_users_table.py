"""Who uses a GPU: one answer of several origins, told when it changes and again in time."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu_users import GpuUser, GpuUsers, Holder, Origin, Place, Process, TrainingPeer
from collectors.gpu_users.merge import Known, users_of
from collectors.gpu_users.table import (
    CHANGE_SECONDS_MIN,
    FORGET_SECONDS,
    PEERS_MAX,
    PLACES_MAX,
    PROCESSES_MAX,
    REFRESH_SECONDS,
)
from collectors.source import EventRow
from dashboards.app import WARM_SECONDS
from telemetry_bus.cells import DETAIL_BYTES_MAX
from telemetry_bus.json_text import dumps
from telemetry_bus.schemas import EventKind

NOW = 1_700_000_000.0
GPU = "GPU-6f1a2b3c-0000-1111-2222-333344445555"
MIG = "MIG-0c9b8a7d-0000-1111-2222-333344445555"
SLURM = GpuUser(Origin.ENVIRONMENT, attempt="42.0", rank=3, local_rank=1, world_size=8, slurm_job_id="42")
PEER = TrainingPeer("llama", "42.0", 3, world_size=8, pid=100, uid=1000)


def process(pid: int, user: GpuUser | None = None, *, parent: int = 1, in_pod: bool | None = False) -> Process:
    """A process that has been read."""
    return Process(pid, parent, 1000, "python", user, in_pod)


def users(table: GpuUsers) -> list[GpuUser]:
    """All users of all places."""
    return [user for told in table.users().values() for user in told]


def told(rows: Sequence[EventRow]) -> list[str]:
    """The messages."""
    return [row.message for row in rows]


def test_the_sdk_s_word_comes_first_and_the_launcher_s_fills_it_up() -> None:
    """A process that speaks with the collector is one user, with what its environment adds."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100], NOW, gpu=0)
    table.saw_training("connection", PEER)
    table.saw_environments({100: process(100, SLURM)})
    assert users(table) == [
        GpuUser(
            Origin.SDK,
            job="llama",
            attempt="42.0",
            rank=3,
            local_rank=1,
            world_size=8,
            pid=100,
            uid=1000,
            process="python",
            slurm_job_id="42",
        )
    ]


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        pytest.param(PEER, process(100), id="its own number"),
        pytest.param(TrainingPeer("llama", "42.0", 3), process(7, SLURM), id="its attempt and rank, where no pid is"),
        pytest.param(PEER, process(7, parent=100), id="the child of the process that speaks"),
    ],
)
def test_a_job_s_process_is_found_in_the_driver_s_list(peer: TrainingPeer, seen: Process) -> None:
    """By number, by launcher's name and rank, or by parent."""
    (user,) = users_of(Known([seen.pid], peers=[peer], processes={seen.pid: seen}))
    assert (user.origin, user.job, user.rank, user.pid) == (Origin.SDK, "llama", 3, seen.pid)


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        pytest.param(TrainingPeer("llama", "42.0", 4), process(7, SLURM), id="another rank"),
        pytest.param(TrainingPeer("llama", "43.0", 3), process(7, SLURM), id="another attempt"),
        pytest.param(
            TrainingPeer("launcher", "x", 0, pid=100), process(7, SLURM, parent=100), id="a launcher is not its ranks"
        ),
    ],
)
def test_a_process_of_another_rank_is_not_the_job_s(peer: TrainingPeer, seen: Process) -> None:
    """Nobody's GPU is put down to somebody else."""
    (user,) = users_of(Known([7], peers=[peer], processes={7: seen}))
    assert (user.origin, user.job, user.slurm_job_id) == (Origin.ENVIRONMENT, None, "42")


def test_processes_of_one_rank_are_one_user() -> None:
    """A rank whose loaders have the GPU open too is told once, by its lowest process."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [101, 100, 102], NOW, gpu=0)
    table.saw_environments({pid: process(pid, SLURM) for pid in (100, 101, 102)})
    assert [user.pid for user in users(table)] == [100]


def test_several_jobs_share_a_gpu() -> None:
    """MPS, rollout processes: each is told."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100, 200, 300], NOW, gpu=0)
    table.saw_training("a", PEER)
    table.saw_environments({200: process(200, replace(SLURM, rank=4)), 300: process(300)})
    assert [user.who() for user in users(table)] == ["llama rank 3", "Slurm job 42 rank 4", "python (300)"]


def test_a_process_of_which_nothing_is_known_is_still_told() -> None:
    """A busy GPU has a user, whoever that is."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100], NOW, gpu=0)
    assert users(table) == [GpuUser(Origin.DRIVER, pid=100)]


def test_a_job_that_names_its_gpu_is_its_user_without_a_process() -> None:
    """In a container's own namespace no number joins: the UUID that the job says does."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [], NOW, gpu=0)
    table.saw_training("a", TrainingPeer("llama", "a1", 0, uuid=GPU))
    table.saw_training("b", TrainingPeer("llama", "a1", 1, gpu=0))
    table.saw_training("c", TrainingPeer("llama", "a1", 2, gpu=1))
    assert [user.rank for user in users(table)] == [0, 1]
    table.training_ended("a")
    table.training_ended("never said hello")
    assert [user.rank for user in users(table)] == [1]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param(GPU, Place(GPU), id="a GPU's UUID"),
        pytest.param("nvidia3", Place(GPU), id="GKE's GPU"),
        pytest.param(MIG, Place(MIG, "9/0"), id="an instance's UUID"),
        pytest.param(f"{GPU}/9/0", Place(MIG, "9/0"), id="a GPU's UUID and an instance"),
        pytest.param("nvidia3/gi9", Place(MIG, "9/0"), id="GKE's instance"),
    ],
)
def test_a_pod_holds_what_the_kubelet_names(name: str, place: Place) -> None:
    """Each device plugin has its own names for GPUs and instances."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [], NOW, gpu=3)
    table.saw_processes(MIG, "9/0", [], NOW, gpu=3)
    table.saw_holders(Origin.POD_RESOURCES, {name: [Holder("trainer-0", "ml", "main")]})
    with_users = {at: found for at, found in table.users().items() if found}
    assert with_users == {place: (GpuUser(Origin.POD_RESOURCES, pod="trainer-0", namespace="ml", container="main"),)}


def test_a_pod_s_process_and_its_pod_are_one_user() -> None:
    """The kubelet's word fills up what the environment leaves open."""
    holder = Holder("trainer-0", "ml", "main")
    seen = {7: process(7, SLURM, in_pod=True), 8: process(8, in_pod=None)}
    first, second = users_of(Known([7, 8], holders=[holder], processes=seen))
    assert (first.origin, first.slurm_job_id, first.pod) == (Origin.ENVIRONMENT, "42", "trainer-0")
    assert (second.origin, second.pid, second.namespace) == (Origin.POD_RESOURCES, 8, "ml")


def test_a_process_outside_kubernetes_is_not_the_pod_s() -> None:
    """Who runs beside the pod on its GPU is told beside it."""
    first, second = users_of(Known([7], holders=[Holder("trainer-0")], processes={7: process(7, SLURM, in_pod=False)}))
    assert (first.pod, second.pod, second.pid) == (None, "trainer-0", None)


def test_of_several_pods_on_one_gpu_each_process_has_its_own() -> None:
    """A GPU shared by time: pods are told apart by their names, and a process that has none is not guessed at."""
    holders = [Holder("a", "ml"), Holder("b", "ml")]
    seen = {
        7: process(7, GpuUser(Origin.ENVIRONMENT, pod="b", rank=0), in_pod=True),
        8: process(8, in_pod=None),
    }
    found = users_of(Known([7, 8], holders=holders, processes=seen))
    assert [(user.pid, user.pod, user.namespace) for user in found] == [
        (7, "b", "ml"),
        (8, None, None),
        (None, "a", "ml"),
    ]


def test_the_kubelet_is_believed_before_an_exporter() -> None:
    """An exporter's labels may be of a pod that is gone."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [], NOW)
    table.saw_holders(Origin.DCGM_EXPORTER, {GPU: [Holder("old", origin=Origin.DCGM_EXPORTER)]})
    assert [user.pod for user in users(table)] == ["old"]
    table.saw_holders(Origin.POD_RESOURCES, {GPU: [Holder("new")]})
    assert [user.pod for user in users(table)] == ["new"]


def test_what_the_driver_does_not_list_is_told_where_somebody_names_it() -> None:
    """A node without the NVML source still says whose a GPU is."""
    table = GpuUsers("n1")
    table.saw_holders(Origin.POD_RESOURCES, {GPU: [Holder("a")], "nvidia0": [Holder("b")], "": [Holder("c")]})
    assert list(table.users()) == [Place(GPU)]


def test_the_first_look_tells_every_gpu_and_the_next_only_what_has_changed() -> None:
    """An idle GPU is told too: whoever knew an older user learns that he is gone."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100], NOW, gpu=0)
    table.saw_processes("GPU-b", None, [], NOW, gpu=1)
    assert told(table.changes(NOW)) == ["n1: GPU 0 is used by a process (100)", "n1: GPU 1 is used by nobody"]
    assert table.changes(NOW + 10.0) == []
    table.saw_processes("GPU-b", None, [200], NOW + 30.0, gpu=1)
    (row,) = table.changes(NOW + 30.0)
    assert row.message == "n1: GPU 1 is used by a process (200); it was by nobody"
    assert (row.kind, row.node, row.gpu, row.uuid, row.simulated) == (EventKind.GPU_USERS, "n1", 1, "GPU-b", False)
    assert row.detail == {
        "instance": None,
        "users": [{"origin": "driver", "pid": 200}],
        "left_out": 0,
        "previous": [],
    }


def test_who_starts_to_read_later_learns_it_within_what_a_dashboard_reads_back() -> None:
    """Everything is told again before it would be older than a new dashboard's memory."""
    assert REFRESH_SECONDS + 2 * 10.0 < WARM_SECONDS
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100], NOW, gpu=0)
    table.changes(NOW)
    table.saw_processes(GPU, None, [100], NOW + REFRESH_SECONDS, gpu=0)
    (row,) = table.changes(NOW + REFRESH_SECONDS)
    assert "previous" not in row.detail


def test_a_job_that_dies_and_starts_again_without_end_is_told_three_times_a_minute() -> None:
    """A storm of processes is no storm of events, and its end is told."""
    table = GpuUsers("n1")
    rows = []
    for second in range(0, 60, 2):
        table.saw_processes(GPU, None, [1_000 + second], NOW + second, gpu=0)
        rows += table.changes(NOW + second)
    assert len(rows) == 60 / CHANGE_SECONDS_MIN
    table.saw_processes(GPU, None, [], NOW + 60.0, gpu=0)
    (last,) = table.changes(NOW + 60.0)
    assert last.detail["users"] == []


def test_an_instance_that_is_gone_has_no_users_any_more() -> None:
    """MIG instances come and go; the last word about one is that nobody uses it."""
    table = GpuUsers("n1")
    table.saw_processes(MIG, "9/0", [100], NOW, gpu=0)
    table.changes(NOW)
    (row,) = table.changes(NOW + FORGET_SECONDS)
    assert (row.gpu, row.detail["instance"], row.detail["users"]) == (0, "9/0", [])
    assert table.changes(NOW + FORGET_SECONDS + 1.0) == []


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    """What was told in a future that is taken back is told again."""
    table = GpuUsers("n1")
    table.saw_processes(GPU, None, [100], NOW, gpu=0)
    table.changes(NOW)
    table.saw_processes(GPU, None, [100], NOW - 3_600.0, gpu=0)
    assert len(table.changes(NOW - 3_600.0)) == 1


def test_at_every_limit_it_is_counted_what_is_left_out() -> None:
    """A hostile node is bounded in GPUs, processes and jobs."""
    table = GpuUsers("n1")
    for at in range(PLACES_MAX + 2):
        table.saw_processes(f"GPU-{at}", None, range(PROCESSES_MAX + (at == 0)), NOW, gpu=at)
    assert table.left_out == 3
    for at in range(PEERS_MAX + 5):
        table.saw_training(at, TrainingPeer("j", "a", at, uuid=f"GPU-x{at}"))
    assert table.left_out == 8
    assert len(table.users()) == PLACES_MAX


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), st.integers(0, PROCESSES_MAX))
def test_an_event_fits_its_cell_whatever_the_users_are_called(letters: str, count: int) -> None:
    """However many and however long: what fits is told, the rest is counted."""
    name = (letters or "x") * 40
    table = GpuUsers("n1")
    seen = {
        pid: process(pid, GpuUser(Origin.ENVIRONMENT, job=name[:128], pod=name[:128], slurm_job_name=name[:128]))
        for pid in range(count)
    }
    table.saw_processes(GPU, None, seen, NOW, gpu=0)
    table.saw_environments(seen)
    (row,) = table.changes(NOW)
    assert len(dumps(row.detail).encode()) <= DETAIL_BYTES_MAX
    assert len(row.detail["users"]) + row.detail["left_out"] == count
