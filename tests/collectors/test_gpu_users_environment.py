"""What is taken of an environment, and what never is."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu_users.environment import ALLOWED, VALUE_BYTES_MAX, in_pod, user_in, variables_of
from collectors.gpu_users.user import GpuUser, Origin

SECRET = "hunter2-" + "x" * 20


def environment(**variables: str) -> bytes:
    """An environment as `/proc` shows it."""
    return b"".join(f"{name}={value}\0".encode() for name, value in variables.items())


def user(**variables: str) -> GpuUser | None:
    """Who these variables say that a process is, on the node n1."""
    return user_in(variables_of([environment(**variables)]), "n1")


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "NANTUCKET_TOKEN", "PATH", "SLURM_JOB_ACCOUNT", "rank", "RANK2"])
def test_what_is_not_on_the_list_is_not_kept(name: str) -> None:
    """Of an environment nothing is taken but what the list names."""
    assert variables_of([environment(**{name: SECRET, "RANK": "3"})]) == {"RANK": "3"}


def test_the_list_names_nothing_that_is_a_secret() -> None:
    """No variable that launchers put a credential into is on the list."""
    assert not [name for name in ALLOWED if any(word in name for word in ("TOKEN", "KEY", "SECRET", "PASS", "URL"))]


def test_the_address_of_kubernetes_is_not_kept() -> None:
    """That there is one says that the process runs in a pod; where it is does not matter."""
    variables = variables_of([environment(KUBERNETES_SERVICE_HOST="10.9.8.7")])
    assert in_pod(variables)
    assert "10.9.8.7" not in repr(variables)


@given(st.binary(max_size=2_000), st.lists(st.integers(0, 2_000), max_size=8))
def test_pieces_are_as_good_as_the_whole(data: bytes, cuts: list[int]) -> None:
    """How an environment is cut into pieces changes nothing."""
    whole = data + b"\0" + environment(RANK="5", AWS_SECRET_ACCESS_KEY=SECRET, SLURM_JOB_ID="42")
    at = [0, *sorted(cuts), len(whole)]
    pieces = [whole[begin:end] for begin, end in pairwise(at)]
    found = variables_of(pieces)
    assert found == variables_of([whole])
    assert found.keys() <= ALLOWED
    assert found["SLURM_JOB_ID"] == "42"


def test_an_entry_longer_than_any_that_is_wanted_is_passed_over_whatever_it_holds() -> None:
    """What a megabyte of one variable hides inside is never taken for a variable."""
    long = b"BASH_FUNC_x=" + b"y" * 1_000_000 + b"\0"
    pieces = [long[at : at + 1_000] for at in range(0, len(long), 1_000)]
    assert variables_of([*pieces, environment(RANK="1")]) == {"RANK": "1"}


def test_a_value_that_is_too_long_is_not_kept_in_part() -> None:
    """Half of a name is another name."""
    assert variables_of([environment(SLURM_JOB_NAME="n" * (VALUE_BYTES_MAX + 1), RANK="1")]) == {"RANK": "1"}


def test_what_is_not_ended_at_the_end_is_left_out() -> None:
    """A variable that the bound has cut is not told as if it were whole."""
    assert variables_of([b"SLURM_JOB_ID=42\0SLURM_STEP_ID=1"]) == {"SLURM_JOB_ID": "42"}


def test_slurm_with_torchrun_gives_job_step_attempt_and_ranks() -> None:
    """A rank under srun and torchrun is known by both."""
    found = user(
        SLURM_JOB_ID="4242",
        SLURM_JOB_NAME="llama-70b",
        SLURM_STEP_ID="0",
        SLURM_PROCID="1",
        SLURM_NTASKS="2",
        RANK="11",
        LOCAL_RANK="3",
        WORLD_SIZE="16",
        TORCHELASTIC_RUN_ID="none",
        TORCHELASTIC_RESTART_COUNT="1",
    )
    assert found == GpuUser(
        Origin.ENVIRONMENT,
        attempt="4242.0.1",
        rank=11,
        local_rank=3,
        world_size=16,
        slurm_job_id="4242",
        slurm_job_name="llama-70b",
        slurm_step_id="0",
    )


def test_mpi_gives_ranks() -> None:
    """A rank under mpirun alone is known too."""
    found = user(OMPI_COMM_WORLD_RANK="7", OMPI_COMM_WORLD_LOCAL_RANK="1", OMPI_COMM_WORLD_SIZE="8")
    assert found == GpuUser(Origin.ENVIRONMENT, rank=7, local_rank=1, world_size=8)


@pytest.mark.parametrize(
    ("variables", "pod"),
    [
        pytest.param({"POD_NAME": "p", "HOSTNAME": "h", "KUBERNETES_SERVICE_HOST": "1"}, "p", id="told by its owner"),
        pytest.param({"HOSTNAME": "h", "KUBERNETES_SERVICE_HOST": "1"}, "h", id="a pod's host name is its name"),
        pytest.param({"HOSTNAME": "n1", "KUBERNETES_SERVICE_HOST": "1"}, None, id="in the host's network"),
        pytest.param({"HOSTNAME": "h"}, None, id="no pod"),
    ],
)
def test_a_pod_is_known_by_its_name(variables: dict[str, str], pod: str | None) -> None:
    """A host's name is a pod's name inside a pod only."""
    found = user(RANK="0", **variables)
    assert found is not None
    assert found.pod == pod


def test_a_process_of_no_launcher_is_nobody() -> None:
    """Missing is not an empty user."""
    assert user(HOME="/root", HOSTNAME="h") is None


@pytest.mark.parametrize("value", ["-1", "1e3", "²", "99999999999", "2147483648", "", "0x1", " 1"])
def test_a_rank_that_is_no_number_is_absent(value: str) -> None:
    """A launcher's odd word becomes nothing, and never rank 0."""
    found = user(RANK=value, SLURM_JOB_ID="1")
    assert found is not None
    assert found.rank is None


def test_control_characters_do_not_reach_a_terminal() -> None:
    """A job's name is told in printable letters."""
    found = user(SLURM_JOB_NAME="a\x1b[31mb\nc", SLURM_JOB_ID="1")
    assert found is not None
    assert found.slurm_job_name == "a?[31mb?c"


def test_the_attempt_is_the_one_that_the_sdk_finds() -> None:
    """The collector and the SDK read one name out of one environment: it joins what they tell."""
    identity = pytest.importorskip("nantucket._identity")
    for variables in (
        {"NANTUCKET_ATTEMPT": "a1"},
        {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_RESTART_COUNT": "1"},
        {"TORCHELASTIC_RUN_ID": "run", "SLURM_JOB_ID": "9"},
        {"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "9", "TORCHELASTIC_RESTART_COUNT": "3"},
        {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "4"},
    ):
        found = user(**variables)
        assert found is not None
        assert (found.attempt, True) == identity.find_attempt(None, variables, 0.0)


def test_this_test_runs_with_an_environment_that_would_show() -> None:
    """The list is short beside what a process really has."""
    assert os.environ.keys() - ALLOWED


def test_the_page_for_operators_lists_every_variable_that_is_read() -> None:
    """Who asks what leaves the node finds the whole list, and nothing that is not read."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu-users.md").read_text()
    listed = page.split("kept, sent or logged:")[1].split("`SLURM_JOB_NAME` is what")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == ALLOWED
