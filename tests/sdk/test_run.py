"""``nantucket.init`` and ``run.log`` in this process: hostile arguments, names, bounds, what is imported."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nantucket
from nantucket._buffer import Row, RowBuffer
from nantucket._connection import BadUrl, address_of
from nantucket._identity import find_attempt, identify
from nantucket._values import plain, rows_of
from tests.sdk.recorder import ROOT, SDK


class Hostile:
    """An object each of whose methods raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __float__(self) -> float:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


class Lying:
    """An object whose ``item`` gives another object."""

    def item(self) -> object:
        """Return no scalar."""
        return self


HOSTILE: list[Any] = [
    *(object(), Hostile(), Lying(), "x" * 10_000_000, "", "x", b"x", True, False, None, [], {}, (), 10**5000, -1, 1j),
    *(math.nan, math.inf, -math.inf, 1e308, 0.5, Decimal("1.5"), Decimal("sNaN"), np.float32(1.5), np.int64(3)),
    *(np.bool_(True), np.array([1.0, 2.0]), np.array(1.0), np.str_("shard"), "\ud800", type, len),
]
COLUMNS = ["loss", "nonfinite", "first_nonfinite", "skipped", "scope", "phase", "microbatch", "any_metric"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[nantucket.Run]:
    """Return a run whose collector is not there."""
    run = nantucket.init("j", 0, attempt="a", url=f"unix://{tmp_path}/none.sock")
    yield run
    run.finish(0.0)


def test_no_argument_makes_log_raise(run: nantucket.Run, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a training loop hands over, the step goes on, and what was wrong is counted and said."""
    for value in HOSTILE:
        run.log(step=value, loss=1.0)
        for column in COLUMNS:
            run.log(step=1, **{column: value})
        run.log(value, step=1)
    names: list[Any] = [1, None, (), object(), b"x", 1.5, True]
    for name in names:
        run.log({name: 1.0}, step=1)
    run.log()
    run.log(1, 2, 3)  # type: ignore[arg-type]
    run.log(step=1, self=2, mappings=3)
    run.log(dict.fromkeys(map(str, range(100_000)), 1.0), step=1)
    run.finish(0.5)
    counts = run.counts()
    assert counts["errors"] == 0
    assert counts["unusable"] > 0
    assert counts["calls_not_taken"] > 0
    assert len(caplog.records) < 64
    assert all(len(record.getMessage()) < 400 for record in caplog.records)


@given(
    st.dictionaries(st.text(max_size=8) | st.sampled_from(COLUMNS), st.sampled_from(HOSTILE)), st.sampled_from(HOSTILE)
)
def test_every_row_that_log_makes_is_json_that_the_collector_takes(values: dict[str, Any], step: Any) -> None:
    """Whatever comes in, what goes out is valid on the wire: a row of the SDK is never refused."""
    from collectors.training_wire import parse_object, parse_rows  # noqa: PLC0415  only this test needs the other side
    from nantucket._wire import row_text, rows_message  # noqa: PLC0415

    rows = rows_of(1.0, plain(step), {name: plain(value) for name, value in values.items()})
    for stream, found in (("train", [rows.train] if rows.train else []), ("metric", rows.metrics)):
        if found:
            message = rows_message(stream, 0, 1.0, [row_text(row) for row in found])
            assert parse_rows(parse_object(message[4:])).unknown == 0


@pytest.mark.parametrize(
    ("value", "column", "metric"),
    [
        pytest.param(None, None, None, id="absent"),
        pytest.param(0.0, 0.0, 0.0, id="zero"),
        pytest.param(math.nan, "NaN", "NaN", id="NaN"),
        pytest.param(-math.inf, "-Infinity", "-Infinity", id="minus infinity"),
        pytest.param(np.float32(0.5), 0.5, 0.5, id="a numpy number"),
        pytest.param(3, 3.0, 3.0, id="a whole number"),
        pytest.param(True, None, 1.0, id="a bool"),
        pytest.param("1.5", None, None, id="a word"),
    ],
)
def test_a_value_becomes_a_cell_or_none(value: Any, column: Any, metric: Any) -> None:
    """A number is a cell, a NaN stays one, and what is no number is left out without taking the others with it."""
    rows = rows_of(1.0, 5, {"loss": plain(value), "lr": 0.1, "reward": plain(value)})
    assert rows.train is not None
    assert (rows.train.get("loss"), rows.train["lr"]) == (column, 0.1)
    assert [row["value"] for row in rows.metrics] == ([] if metric is None else [metric])


def test_a_non_finite_row_is_critical() -> None:
    """A row is critical for a non-finite number or a count of them, and for nothing else."""
    found = [
        rows_of(1.0, 1, values).critical for values in ({"loss": math.nan}, {"nonfinite": 1}, {"nonfinite": 0}, {})
    ]
    assert found == [True, True, False, False]


def test_a_full_queue_drops_the_oldest_and_keeps_what_is_critical() -> None:
    """At the bound the oldest ordinary row goes; critical rows stay in order until they are half of the bound."""
    buffer = RowBuffer(rows_max=6, bytes_max=1000)
    dropped = [buffer.put(Row(str(number).encode(), number in {1, 3, 5, 7})) for number in range(12)]
    assert sum(dropped) == 6
    assert buffer.take(100, 1000) == [b"1", b"3", b"5", b"9", b"10", b"11"]
    assert (len(buffer), buffer.size_bytes) == (0, 0)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.booleans())), st.integers(2, 9), st.integers(40, 90))
def test_a_queue_is_never_over_its_bounds(rows: list[tuple[bytes, bool]], rows_max: int, bytes_max: int) -> None:
    """Rows and bytes stay within the bounds, and every row is either there or counted."""
    buffer, dropped = RowBuffer(rows_max, bytes_max), 0
    for text, critical in rows:
        dropped += buffer.put(Row(text, critical))
        assert len(buffer) <= rows_max
        assert buffer.size_bytes <= bytes_max
    taken = buffer.take(len(rows) + 1, 10_000)
    assert len(taken) + dropped == len(rows)
    assert buffer.size_bytes == 0


@pytest.mark.parametrize(
    ("environment", "attempt", "common"),
    [
        pytest.param({"NANTUCKET_ATTEMPT": "x", "SLURM_JOB_ID": "7"}, "x", True, id="named"),
        pytest.param({"TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "2"}, "r.2", True, id="torchrun"),
        pytest.param({"TORCHELASTIC_RUN_ID": "r", "SLURM_RESTART_COUNT": "1"}, "r.0.1", True, id="torchrun requeued"),
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, "7.1", True, id="Slurm"),
        pytest.param({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "none"}, "7.0", True, id="Slurm and plain torchrun"),
        pytest.param({"TORCHELASTIC_RUN_ID": "none"}, "19700101T000001.500000Z", False, id="the time of start"),
    ],
)
def test_a_restart_is_a_new_attempt(environment: dict[str, str], attempt: str, common: bool) -> None:
    """The attempt comes from whoever started the job, and says whether all ranks find the same one."""
    assert find_attempt(None, environment, 1.5) == (attempt, common)


def test_ranks_come_from_the_launcher() -> None:
    """Rank and world size are the launcher's where nobody gives them; a bad value is said and is rank 0."""
    identity, problems = identify("j", None, {"attempt": "a"}, {"SLURM_PROCID": "3", "WORLD_SIZE": "8"}, 0.0)
    assert (identity.rank, identity.extra, problems) == (3, {"world_size": 8}, [])
    identity, problems = identify("j", 1.5j, {"attempt": "a", "dp": -1, "node": "\n"}, {}, 0.0)
    assert (identity.rank, identity.extra, len(problems)) == (0, {}, 3)


def test_a_name_that_the_collector_would_refuse_is_left_out_and_said() -> None:
    """The wire bounds a node's name in bytes, and a refused hello would cost all rows: the SDK leaves the name out."""
    options = {
        "attempt": "a",
        "node": "\N{WHALE}" * 64,
        "region": "\N{WHALE}" * 63,
        "uuid": "\ud800",
        "role": "x" * 253,
    }
    identity, problems = identify("j", 0, options, {}, 0.0)
    assert identity.extra == {"region": "\N{WHALE}" * 63, "role": "x" * 253}
    expected = "expected a printable text of 1 to 253 bytes in UTF-8; left out"
    assert problems == [f"node: {expected}", f"uuid: {expected}"]


def test_ranks_that_cannot_agree_on_an_attempt_are_told() -> None:
    """Of many ranks without a launcher's name each would be an attempt of its own: the log says what to set."""
    _, problems = identify("j", 0, {}, {"WORLD_SIZE": "8"}, 0.0)
    assert ["NANTUCKET_ATTEMPT" in problem for problem in problems] == [True]


@pytest.mark.parametrize("job", ["", "a b", "/", "é", None, 7, object(), "x" * 1000])
def test_init_takes_any_name_and_never_raises(job: Any, tmp_path: Path) -> None:
    """A name that the wire does not take is changed, and that is said; the job starts."""
    run = nantucket.init(job, rank="x", url=f"unix://{tmp_path}/none.sock", token="a\nb")  # type: ignore[arg-type]
    run.log(step=1)
    run.finish(0.0)
    assert run.counts()["errors"] == 0


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x", "http://example.org:80", "http://10.0.0.1:80", "http://127.0.0.1", "http://u:secret@127.0.0.1:1"),
        *("unix://x/y", "unix:", "http://[", "http://127.0.0.1:99999", "", f"unix:///{'x' * 108}"),
    ],
)
def test_a_url_that_cannot_be_used_is_explained_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The token goes to this machine only; another URL is refused in words that show no credentials."""
    with pytest.raises(BadUrl):
        address_of(url)
    run = nantucket.init("j", url=url)
    run.log(step=1)
    run.finish(0.2)
    assert any("nothing is reported" in record.getMessage() for record in caplog.records)
    assert "secret" not in caplog.text


def test_a_logging_handler_that_raises_is_not_the_steps_problem(run: nantucket.Run) -> None:
    """Not even what the job does with log lines gets into a training step."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(record)

    handler = Raising()
    logging.getLogger("nantucket").addHandler(handler)
    try:
        run.log(5, step=1)  # type: ignore[arg-type]
    finally:
        logging.getLogger("nantucket").removeHandler(handler)
    assert run.counts()["calls_not_taken"] == 1


def test_importing_the_sdk_imports_the_standard_library_only() -> None:
    """It works with no site-packages at all, and everything that it loads comes with Python."""
    program = f"import sys; sys.path.insert(0, {str(SDK)!r}); import nantucket; print(*sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-S", "-I", "-c", program], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in found.stdout.split()} - {"nantucket", "__main__"}
    assert {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("_")} == set()


def test_the_wheel_works_alone_in_a_fresh_environment(tmp_path: Path) -> None:
    """What is released is what was tested: one package, typed, without dependencies."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT / "sdk")], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("nantucket-*-py3-none-any.whl")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    scheme = {"base": str(environment), "platbase": str(environment)}
    site = sysconfig.get_path("purelib", "venv" if sys.version_info >= (3, 11) else "posix_prefix", vars=scheme)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), site], check=True)
    program = (
        "import nantucket, importlib.metadata as m, importlib.resources as r; d = m.distribution('nantucket'); "
        "print(nantucket.__file__, d.version == nantucket.__version__, d.requires, "
        "r.files('nantucket').joinpath('py.typed').is_file())"
    )
    python = environment / "bin" / "python"
    found = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout == f"{site}/nantucket/__init__.py True None True\n"
