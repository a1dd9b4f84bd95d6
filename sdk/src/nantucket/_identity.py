"""Who reports: the job, the attempt, the rank and where it runs, from arguments and the launcher's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

NAME_MAX = 96
"""Characters of a job's or attempt's name: ``job/attempt/rank/stream`` is a source of the bus: 256 bytes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,95}")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._:@+-]+")
TEXT_MAX = 253
"""UTF-8 bytes of a node's name, as of a host's; also of a region, a GPU's UUID and a role."""
INT32_MAX = 2**31 - 1
RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
WORLD_VARIABLES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Identity(NamedTuple):
    """What the ``hello`` message says about this process. ``extra`` holds the fields that are known, and only those."""

    job: str
    attempt: str
    rank: int
    extra: dict[str, Any]


def find_attempt(given: object, environment: Mapping[str, str], start: float) -> tuple[str, bool]:
    """The attempt's name, and whether every rank of the job finds the same one.

    In order: ``given``; ``NANTUCKET_ATTEMPT``; torchrun's run id and restart count (with Slurm's restart count behind
    it where the job was requeued); Slurm's job id and restart count; the time of start, which differs from rank to
    rank. torchrun's default run id is the word "none", which would be the same for every start: it is passed over.
    """
    if given is not None:
        return str(given), True
    if environment.get("NANTUCKET_ATTEMPT"):
        return environment["NANTUCKET_ATTEMPT"], True
    requeued = environment.get("SLURM_RESTART_COUNT", "0")
    elastic = environment.get("TORCHELASTIC_RUN_ID", "")
    if elastic not in ("", "none"):
        name = elastic + "." + environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        return name if requeued == "0" else name + "." + requeued, True
    if environment.get("SLURM_JOB_ID"):
        name = environment["SLURM_JOB_ID"] + "." + requeued
        again = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        return name if again == "0" else name + "." + again, True
    return datetime.fromtimestamp(start, timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ"), False


def name_of(raw: object, fallback: str) -> tuple[str, str | None]:
    """``raw`` as a name that the wire takes, and what had to be changed in it."""
    text = raw if isinstance(raw, str) else str(raw)
    if _NAME.fullmatch(text):
        return text, None
    cleaned = _NOT_IN_NAME.sub("-", text).lstrip("._:@+-")[:NAME_MAX] or fallback
    expected = f"expected 1 to {NAME_MAX} letters, digits or ._:@+- with a letter or digit first"
    return cleaned, f"{expected}, found {text[:NAME_MAX]!a}; reported as {cleaned}"


def find_number(given: object, variables: tuple[str, ...], environment: Mapping[str, str]) -> tuple[int | None, str]:
    """A whole number from the argument or the first variable that is set, and a problem or ``""``."""
    raw: object = given
    where = "the argument"
    if raw is None:
        where = next((name for name in variables if environment.get(name)), "")
        raw = environment.get(where)
    if raw is None:
        return None, ""
    try:
        number = int(raw) if type(raw) is not bool else -1  # type: ignore[call-overload]  # what int refuses is caught
    except (TypeError, ValueError, OverflowError):
        number = -1
    if 0 <= number <= INT32_MAX:
        return number, ""
    return None, f"expected a whole number from 0 to {INT32_MAX} in {where}, found {str(raw)[:40]!a}"


def identify(
    job: object, rank: object, options: Mapping[str, object], environment: Mapping[str, str], start: float
) -> tuple[Identity, list[str]]:
    """The identity, and what is wrong with what was given. ``options`` are the other keywords of ``init``, as given."""
    problems: list[str] = []

    def noted(field: str, problem: str | None) -> None:
        if problem:
            problems.append(f"{field}: {problem}")

    job_name, problem = name_of(job, "unnamed")
    noted("job", problem)
    raw_attempt, common = find_attempt(options.get("attempt"), environment, start)
    attempt, problem = name_of(raw_attempt, "unnamed")
    noted("attempt", problem)
    number, problem = find_number(rank, RANK_VARIABLES, environment)
    noted("rank", problem)
    world, problem = find_number(options.get("world_size"), WORLD_VARIABLES, environment)
    noted("world_size", problem)
    if not common and world is not None and world > 1:
        problems.append(
            "attempt: no launcher names it, so it is this process's time of start, which the other ranks do not share; "
            "set NANTUCKET_ATTEMPT to the same text for all ranks of this start"
        )
    extra: dict[str, Any] = {} if world is None else {"world_size": world}
    for field in ("dp", "tp", "pp", "ep", "gpu"):
        coordinate, problem = find_number(options.get(field), (), environment)
        noted(field, problem)
        if coordinate is not None:
            extra[field] = coordinate
    for field in ("role", "node", "region", "uuid"):
        text = options.get(field)
        # Printable before encoded: half of a surrogate pair is neither.
        short = isinstance(text, str) and 0 < len(text) <= TEXT_MAX and text.isprintable()
        if short and len(str(text).encode()) <= TEXT_MAX:
            extra[field] = text
        elif text is not None:
            noted(field, f"expected a printable text of 1 to {TEXT_MAX} bytes in UTF-8; left out")
    return Identity(job_name, attempt, 0 if number is None else number, extra), problems
