"""Recorded runs through the detectors: what comes out depends on no later row and not on how rows are cut into
frames."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.replay import ReplayFinding, ReplayResult, Run, read_run, replay_command, replay_run
from app.replay.run import GAP_TICKS_MAX, event_micros, feed, gap_ticks, job_name, pieces, run_batch
from detectors import Detector, run_detectors

CORPUS = Path(__file__).parent.parent / "corpus"
RUNS = sorted(CORPUS.glob("*.csv"))
PIECES = (1, 7, 64)
SAID = (
    ("nan-log0-0", 700, 701),
    ("lrkick-lm-2", 1111, 1122),
    ("fp16-collapse-0", 700, 711),
    ("bitflip-g-2", 1100, 1101),
)
by_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)


def replayed(run: Run, rows_per_frame: int = 64) -> ReplayResult:
    """Replay with fresh detectors."""
    return replay_run(run, [config.build() for config in run_detectors()], rows_per_frame)


def told(items: tuple[ReplayFinding, ...]) -> list[str]:
    """Findings so that they can be compared, NaN and all."""
    return [repr(item) for item in items]


def prefix(run: Run, rows: int) -> Run:
    """The first rows of a run."""
    return Run(run.path, {name: values[:rows] for name, values in run.columns.items()}, run.rows[:rows])


@by_run
def test_a_prefix_of_a_run_gives_a_prefix_of_its_findings(path: Path) -> None:
    """Replayed anew in pieces of 1, 7 and 64 rows, prefixes around every finding and elsewhere say what the whole run
    said so far."""
    run = read_run(path)
    whole = replayed(run)
    chance = np.random.default_rng(7)
    around = {max(1, item.row + more) for item in whole.findings for more in (0, 1)}
    lengths = sorted(around | set(chance.integers(1, len(run.rows), 2).tolist()))[:4]
    for at, rows in enumerate(lengths):
        part = replayed(prefix(run, rows), PIECES[at % len(PIECES)])
        assert told(part.findings) == told(tuple(item for item in whole.findings if item.row < rows))
        assert told(part.resolved) == told(tuple(item for item in whole.resolved if item.row < rows))
        assert told(part.pages) == told(tuple(item for item in whole.pages if item.row < rows))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("name", ["nan-log0-0", "bitflip-g-2", "blip-lm-0", "healthy-resume-2"])
def test_every_prefix_says_what_the_whole_run_said_so_far(name: str, size: int) -> None:
    """Each of a run's prefixes, row by row to its end, in pieces of 1, 7 and 64 rows: a prefix that ends inside a piece
    is fed from a copy of the detectors' state at the last border, which is what a replay of it would have there."""
    run = read_run(CORPUS / f"{name}.csv")
    micros = event_micros(run)
    batch = run_batch(run, micros, job_name(run.path))
    whole = fed_prefixes(run_detectors_now(), batch, micros, len(micros))[len(micros)]
    prefixes = fed_prefixes(run_detectors_now(), batch, micros, size)
    assert sorted(prefixes) == list(range(1, len(micros) + 1))
    for rows, said in prefixes.items():
        assert said == [item for item in whole if item[1] < rows], f"the first {rows} rows"
    assert (name == "healthy-resume-2") == (whole == [])


def run_detectors_now() -> list[Detector]:
    """Fresh detectors."""
    return [config.build() for config in run_detectors()]


def fed_prefixes(
    detectors: list[Detector], batch: pa.RecordBatch, micros: list[int], size: int
) -> dict[int, list[tuple[str, int]]]:
    """What is said of every prefix (of the whole run only, if one piece takes it): rows to (finding, row)."""

    def told_of(detectors: list[Detector], begin: int, end: int) -> list[tuple[str, int]]:
        return [(repr(finding), row) for finding, row in feed(detectors, batch, micros, begin, end)]

    said: list[tuple[str, int]] = []
    prefixes: dict[int, list[tuple[str, int]]] = {}
    for begin, end in pieces(micros, size):
        for inside in range(begin + 1, end if size < len(micros) else begin):
            prefixes[inside] = said + told_of(copy.deepcopy(detectors), begin, inside)
        said = said + told_of(detectors, begin, end)
        prefixes[end] = said
    return prefixes


@by_run
def test_every_prefix_is_a_prefix_because_rows_come_one_by_one(path: Path) -> None:
    """Fed row by row, what has been said after each row is what is said of that prefix: each finding is of the row
    just fed, and larger pieces say the same.
    """
    run = read_run(path)
    one, seven, many = (replayed(run, rows) for rows in PIECES)
    assert told(one.findings) == told(seven.findings) == told(many.findings)
    assert told(one.resolved) == told(seven.resolved) == told(many.resolved)
    assert told(one.pages) == told(seven.pages) == told(many.pages)
    micros = event_micros(run)
    for item in one.findings:
        assert round(item.finding.time * 1e6) <= micros[run.rows.index(item.row)]


@pytest.mark.parametrize(("name", "page_from", "page_by"), SAID)
def test_a_run_that_failed_pages_once_at_the_step(name: str, page_from: int, page_by: int) -> None:
    """One failure wakes one person, at the step at which it can be seen first."""
    pages = replayed(read_run(CORPUS / f"{name}.csv")).pages
    assert [page_from <= page.step <= page_by for page in pages[:1]] == [True]
    assert len(pages) == 1


@pytest.mark.parametrize("name", ["healthy-resume-2", "healthy-fp16-2"])
def test_a_healthy_run_wakes_nobody(name: str) -> None:
    """Neither a resume nor overflows that the loss scaler skipped are said at all."""
    result = replayed(read_run(CORPUS / f"{name}.csv"))
    assert result.pages == ()
    assert result.findings == ()


def test_one_bad_step_that_heals_is_a_warning_and_no_page() -> None:
    """A blip is looked at the next day."""
    result = replayed(read_run(CORPUS / "blip-lm-0.csv"))
    assert [(item.finding.severity.value, item.step) for item in result.findings] == [("warning", 600)]
    assert result.pages == ()
    assert len(result.resolved) == 1


def test_a_silence_in_a_file_is_found_by_ticks_of_its_own_time(tmp_path: Path) -> None:
    """A step that took an hour is a stall that came out at the row that ended it."""
    path = tmp_path / "slow.csv"
    rows = [f"{step},2.0,{3600 if step == 40 else 1}" for step in range(60)]
    path.write_text("step,loss,step_time_s\n" + "\n".join(rows) + "\n")
    run = read_run(path)
    result = replayed(run, 64)
    assert [(item.finding.detector, item.row, item.step) for item in result.findings] == [("stall", 40, 40)]
    assert [item.row for item in result.resolved] == [40]
    assert told(result.findings) == told(replayed(run, 1).findings)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_ticks_of_a_gap_are_inside_it_and_bounded(before: float, length: float) -> None:
    """However long a gap is, it costs a bounded number of ticks, which all lie in it and grow."""
    ticks = gap_ticks(before, before + length)
    assert len(ticks) <= GAP_TICKS_MAX
    assert all(before <= now <= before + length for now in ticks)
    assert ticks == sorted(ticks)


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), numbers, numbers, numbers, numbers), min_size=1, max_size=150)
)
@settings(max_examples=40)
def test_any_run_can_be_replayed(
    rows: list[tuple[int, float | None, float | None, float | None, float | None]],
) -> None:
    """No row breaks a replay, and pieces of 1 and 64 rows say the same."""
    steps, loss, norm, lr, took = (list(column) for column in zip(*rows, strict=True))
    columns = {"step": steps, "loss": loss, "grad_norm": norm, "lr": lr, "step_time_s": took}
    run = Run(Path("any.csv"), columns, list(range(len(rows))))
    assert told(replayed(run, 1).findings) == told(replayed(run, 64).findings)
    json.dumps(replayed(run).as_json())


def test_the_command_prints_a_line_of_strict_json_per_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The keys are those that scripts rely on, and only JSON goes to standard output."""
    status = replay_command([CORPUS / "nan-log0-0.csv", CORPUS / "healthy-resume-2.csv"], json=True, plot=None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [Path(line["file"]).stem for line in lines] == ["nan-log0-0", "healthy-resume-2"]
    assert lines[0]["rows"] == 1500
    assert lines[0]["pages"] == lines[0]["page_rows"] == [700]
    assert lines[0]["findings"][0].keys() == {"detector", "severity", "step", "row", "onset_step", "cause", "message"}
    assert lines[0]["rows_per_second"] > 0


def test_a_file_that_cannot_be_read_fails_and_the_others_are_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 1, the message names the file, and nothing else is lost."""
    status = replay_command([tmp_path / "none.csv", CORPUS / "blip-lm-0.csv"], json=True, plot=None)
    out, err = capsys.readouterr()
    assert status == 1
    assert "none.csv" in err
    assert len(out.splitlines()) == 1


def test_no_file_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is 2 and the message says what is expected."""
    assert replay_command([], json=True, plot=None) == 2
    assert "expected at least one file" in capsys.readouterr().err


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json the findings are a table with the words of the page."""
    assert replay_command([CORPUS / "nan-log0-0.csv"], json=False, plot=None) == 0
    assert "the loss is NaN" in capsys.readouterr().out


def test_a_picture_of_each_run_is_drawn(tmp_path: Path) -> None:
    """--plot writes a PNG per file, also where values are missing or not finite."""
    bare = tmp_path / "bare.csv"
    bare.write_text("step,grad_norm\n0,1\n1,nan\n2,\n")
    assert replay_command([CORPUS / "fp16-collapse-0.csv", bare], json=True, plot=tmp_path / "pictures") == 0
    for name in ("fp16-collapse-0", "bare"):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_event_time_always_grows() -> None:
    """Rows without a usable duration are a second apart, and none is at the time of another."""
    run = Run(Path("r.csv"), {"step": [0, 1, 2, 3], "step_time_s": [0.0, math.nan, -1.0, None]}, [0, 1, 2, 3])
    assert event_micros(run) == [1, 1_000_001, 2_000_001, 3_000_001]


@pytest.mark.needs_shared
def test_all_recorded_runs_are_judged_well(shared_folder: Path) -> None:
    """Nobody is woken by a healthy run, and nearly every failure pages in time."""
    folder = shared_folder / "data" / "runs"
    labels = json.loads((folder / "labels.json").read_text())
    asked = found = 0
    for label in labels:
        result = replayed(read_run(folder / label["file"]))
        if label["expect"] == "none":
            assert result.pages == (), label["file"]
        if label["expect"] == "page":
            asked += 1
            found += any(label["page_from"] <= page.step <= label["page_by"] for page in result.pages)
    assert found >= 0.9 * asked
