"""What the launcher of a process has said in its environment: Slurm, torchrun, MPI, Kubernetes, Ray.

An environment holds keys and passwords. It is read through the allow-list :data:`ALLOWED`: of everything else not even
a name is kept, and nothing of an environment is ever logged. Here is no I/O: bytes come in.
"""

from collections.abc import Iterable, Mapping

from collectors.gpu_users.user import GpuUser, Origin, bounded

ALLOWED = frozenset(
    {
        "KUBERNETES_SERVICE_HOST",  # whether it runs in a pod; the address itself is not kept
        "HOSTNAME",  # in a pod the pod's name
        "POD_NAME",
        "POD_NAMESPACE",
        "NANTUCKET_JOB",
        "NANTUCKET_ATTEMPT",
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_STEP_ID",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_NTASKS",
        "SLURM_RESTART_COUNT",
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "PMI_RANK",
        "PMI_SIZE",
        "RAY_JOB_ID",
    }
)
"""Every variable that is looked at. A job's name is what its owner calls it where all who may see the queue see it."""
VALUE_BYTES_MAX = 256
"""A pod's name has at most 253 bytes. Of a longer value nothing is kept: it is not what it says it is."""
_ALLOWED_BYTES = {name.encode(): name for name in ALLOWED}
_ENTRY_BYTES_MAX = max(map(len, ALLOWED)) + 1 + VALUE_BYTES_MAX
INT32_MAX = 2**31 - 1


def variables_of(pieces: Iterable[bytes]) -> dict[str, str]:
    """The allowed variables of an environment that comes piece by piece, each ended by a zero byte. The first of a name
    counts, as for ``getenv``. What stands unended at the end is left out."""
    found: dict[str, str] = {}
    begun = b""
    for piece in pieces:
        *entries, begun = (begun + piece).split(b"\0")
        for entry in entries:
            _take(found, entry)
        # A longer entry is none that is wanted: enough of it is kept to be seen as too long.
        begun = begun[: _ENTRY_BYTES_MAX + 1]
    return found


def _take(found: dict[str, str], entry: bytes) -> None:
    if len(entry) > _ENTRY_BYTES_MAX:
        return
    key, _, value = entry.partition(b"=")
    name = _ALLOWED_BYTES.get(key)
    if name is not None and name not in found and 0 < len(value) <= VALUE_BYTES_MAX:
        found[name] = "1" if name == "KUBERNETES_SERVICE_HOST" else value.decode("utf-8", "replace")


def in_pod(variables: Mapping[str, str]) -> bool:
    """Whether the process runs in Kubernetes."""
    return "KUBERNETES_SERVICE_HOST" in variables


def user_in(variables: Mapping[str, str], node: str) -> GpuUser | None:
    """Who the variables say that it is; ``None`` where they say nothing. ``node`` is this machine's name, which is that
    of a pod in the host's network."""
    texts = {name: bounded(value) for name, value in variables.items()}
    torchrun = texts.get("TORCHELASTIC_RUN_ID")
    pod = texts.get("POD_NAME")
    if pod is None and in_pod(variables) and variables.get("HOSTNAME") != node:
        pod = texts.get("HOSTNAME")
    user = GpuUser(
        Origin.ENVIRONMENT,
        job=texts.get("NANTUCKET_JOB"),
        attempt=_attempt(variables),
        rank=_number(variables, "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
        local_rank=_number(variables, "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
        world_size=_number(variables, "WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
        pod=pod,
        namespace=None if pod is None else texts.get("POD_NAMESPACE"),
        slurm_job_id=texts.get("SLURM_JOB_ID"),
        slurm_job_name=texts.get("SLURM_JOB_NAME"),
        slurm_step_id=texts.get("SLURM_STEP_ID"),
        run_id=None if torchrun == "none" else torchrun,
        ray_job_id=texts.get("RAY_JOB_ID"),
    )
    return None if user == GpuUser(Origin.ENVIRONMENT) else user


def _attempt(variables: Mapping[str, str]) -> str | None:
    """The attempt as the SDK names it from the same variables (sdk ``_identity.find_attempt``): it joins the two."""
    if given := variables.get("NANTUCKET_ATTEMPT"):
        return bounded(given)
    requeued = variables.get("SLURM_RESTART_COUNT", "0")
    again = variables.get("TORCHELASTIC_RESTART_COUNT", "0")
    elastic = variables.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":
        return bounded(f"{elastic}.{again}" + ("" if requeued == "0" else f".{requeued}"))
    if slurm := variables.get("SLURM_JOB_ID"):
        return bounded(f"{slurm}.{requeued}" + ("" if again == "0" else f".{again}"))
    return None


def _number(variables: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is set, if it is a whole number."""
    text = next((variables[name] for name in names if name in variables), "")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else -1
    return number if 0 <= number <= INT32_MAX else None
