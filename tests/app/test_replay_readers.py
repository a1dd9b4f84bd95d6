"""Files of recorded runs: what is taken, what is skipped, and what is said of it."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.replay import UnreadableRun, read_run
from app.replay.errors import ReplayError
from app.replay.readers import PROBLEMS_MAX


def written(folder: Path, name: str, text: str | bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_absent_zero_and_nan_are_three_things_in_a_csv(tmp_path: Path) -> None:
    """An empty cell is absent, 0 is a zero, and nan, inf and -inf are values."""
    run = read_run(written(tmp_path, "r.csv", "step,loss\n0,\n1,0\n2,nan\n3,inf\n4,-inf\n"))
    absent, zero, nan, up, down = run.columns["loss"]
    assert absent is None
    assert zero == 0.0
    assert isinstance(nan, float)
    assert math.isnan(nan)
    assert (up, down) == (math.inf, -math.inf)


def test_steps_that_go_back_or_repeat_are_taken(tmp_path: Path) -> None:
    """A resume is no fault of the file."""
    run = read_run(written(tmp_path, "r.csv", "step,loss\n5,1\n6,1\n5,1\n5,1\n"))
    assert run.columns["step"] == [5, 6, 5, 5]
    assert run.skipped_rows == 0


def test_text_in_a_number_is_said_with_file_line_and_column_and_only_that_row_is_lost(tmp_path: Path) -> None:
    """The message names the place, what was expected and what was found."""
    run = read_run(written(tmp_path, "r.csv", "step,loss\n0,1\n1,high\n2,3\n"))
    assert run.columns["loss"] == [1.0, 3.0]
    assert run.rows == [0, 2]
    assert run.skipped_rows == 1
    expected = "expected a number, nan, inf or -inf, found 'high'; the row is skipped"
    assert run.problems == [f"{tmp_path / 'r.csv'}: line 3, column loss: {expected}"]


@pytest.mark.parametrize(
    ("cell", "column"),
    [("1.5", "step"), ("", "step"), ("1e30", "step"), ("1_000", "loss"), ("maybe", "skipped"), ("0.5", "nonfinite")],
)
def test_a_cell_that_is_not_what_its_column_holds_skips_its_row(tmp_path: Path, cell: str, column: str) -> None:
    """Whole numbers are whole, flags are flags, and Python's own spellings are not taken."""
    names = ["step", "loss", "skipped", "nonfinite"]
    bad = ["7" if name == "step" else "" for name in names]
    bad[names.index(column)] = cell
    run = read_run(written(tmp_path, "r.csv", f"{','.join(names)}\n0,1,0,0\n{','.join(bad)}\n"))
    assert run.rows == [0]
    assert f"column {column}" in run.problems[0]


@pytest.mark.parametrize("bad", ['1,"1', '"1,1', '1,"1" 2', "1,1e400", "1,-1e400"])
def test_a_bad_line_of_a_csv_costs_its_own_row_and_no_other(tmp_path: Path, bad: str) -> None:
    """A quote that is never closed ends with its line, and a number that overflows is a mistake, not an infinity."""
    run = read_run(written(tmp_path, "r.csv", f"step,loss\n0,1\n{bad}\n2,3\n3,4\n"))
    assert run.columns["step"] == [0, 2, 3]
    assert run.columns["loss"] == [1.0, 3.0, 4.0]
    assert run.rows == [0, 2, 3]
    assert (run.skipped_rows, len(run.problems)) == (1, 1)
    assert "line 3" in run.problems[0]


def test_a_quoted_cell_is_read(tmp_path: Path) -> None:
    """Tools that quote every cell are understood."""
    assert read_run(written(tmp_path, "r.csv", '"step","loss"\r\n"0","1.5"\r\n')).columns["loss"] == [1.5]


@pytest.mark.parametrize("name", ["r.jsonl", "trainer_state.json"])
def test_a_json_number_that_overflows_skips_its_row_and_is_named(tmp_path: Path, name: str) -> None:
    """Only the literal spellings are non-finite: 1e999 is a mistake, said with its place and column."""
    rows = ['{"step":0,"loss":1.0}', '{"step":1,"loss":1e999}', '{"step":2,"loss":Infinity}']
    text = "\n".join(rows) if name == "r.jsonl" else f'{{"log_history":[{",".join(rows)}]}}'
    run = read_run(written(tmp_path, name, text))
    assert run.columns["loss"] == [1.0, math.inf]
    place = "line 2" if name == "r.jsonl" else "log_history entry 1"
    assert f"{place}, column loss: expected a number that fits 64 bits" in run.problems[0]
    assert "found '1e999'" in run.problems[0]


def test_a_row_with_too_few_or_too_many_cells_is_skipped(tmp_path: Path) -> None:
    """Cells that cannot be told apart are not guessed at."""
    run = read_run(written(tmp_path, "r.csv", "step,loss\n0\n1,2,3\n2,2\n"))
    assert run.rows == [2]
    assert run.skipped_rows == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss,lr\n1,2\n", "step and at least one"),
        ("step,accuracy\n1,2\n", "step and at least one"),
        ("step,loss,loss\n1,2,3\n", "more than once"),
        ("step,loss\n", "at least one row"),
        ("step,loss\nx,y\n", "1 were skipped"),
        ("", "empty"),
    ],
    ids=["no step", "no measure", "twice", "no rows", "only bad rows", "empty"],
)
def test_a_file_that_holds_no_run_is_refused_with_what_was_expected(tmp_path: Path, text: str, words: str) -> None:
    """The message names the file and what a run would look like."""
    with pytest.raises(UnreadableRun, match=words):
        read_run(written(tmp_path, "r.csv", text))


def test_problems_are_all_counted_and_some_are_said(tmp_path: Path) -> None:
    """A file of a million bad rows does not fill the terminal."""
    run = read_run(written(tmp_path, "r.csv", "step,loss\n0,1\n" + "x,1\n" * 500))
    assert run.skipped_rows == 500
    assert len(run.problems) == PROBLEMS_MAX


def test_json_lines_have_the_same_keys_and_non_finite_numbers_as_strings(tmp_path: Path) -> None:
    """ "NaN" is a NaN, null and a missing key are absent, and a line that is no object is skipped."""
    lines = ['{"step":0,"loss":"NaN"}', '{"step":1,"loss":null}', "[]", '{"step":3,"loss":2,"skipped":true}', "{", ""]
    run = read_run(written(tmp_path, "r.jsonl", "\n".join(lines)))
    assert run.rows == [0, 1, 3]
    assert isinstance(run.columns["loss"][0], float)
    assert math.isnan(run.columns["loss"][0])
    assert run.columns["loss"][1:] == [None, 2.0]
    assert run.columns["skipped"] == [None, None, True]
    assert run.skipped_rows == 2


def test_a_boolean_is_no_number(tmp_path: Path) -> None:
    """true is not a loss of one."""
    run = read_run(written(tmp_path, "r.jsonl", '{"step":0,"loss":true}\n{"step":1,"loss":1}\n'))
    assert run.rows == [1]


def test_a_trainer_state_gives_its_training_entries(tmp_path: Path) -> None:
    """Evaluations and the closing summary are no steps; a NaN norm beside a loss of 0.0, as the Trainer writes it, is
    kept."""
    history = [
        {"step": 10, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 0.1},
        {"step": 10, "eval_loss": 2.0},
        {"step": 20, "loss": 0.0, "grad_norm": math.nan, "learning_rate": 1e-4},
        {"step": 20, "train_loss": 2.2, "train_runtime": 5.0},
    ]
    run = read_run(written(tmp_path, "trainer_state.json", json.dumps({"log_history": history})))
    assert run.columns["step"] == [10, 20]
    assert run.columns["loss"] == [2.5, 0.0]
    assert run.columns["lr"] == [1e-4, 1e-4]
    assert isinstance(run.columns["grad_norm"][1], float)
    assert math.isnan(run.columns["grad_norm"][1])


def test_an_event_file_is_refused_by_name(tmp_path: Path) -> None:
    """What is not read yet says so, instead of being read as text."""
    with pytest.raises(UnreadableRun, match="TensorBoard"):
        read_run(written(tmp_path, "events.out.tfevents.1.host", b"\x18\x00\x00"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_said_to_be_that(tmp_path: Path, encoding: str) -> None:
    """With or without a mark at its beginning; the message says how to make UTF-8 of it."""
    path = tmp_path / "r.csv"
    path.write_bytes("step,loss\n0,1.5\n1,1.25\n".encode(encoding))
    with pytest.raises(UnreadableRun, match="UTF-16 text; expected UTF-8: iconv"):
        read_run(path)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_a_line_may_end_as_on_any_system(tmp_path: Path, end: str) -> None:
    """A carriage return alone ends a line, too."""
    path = tmp_path / "r.csv"
    path.write_bytes(end.join(["step,loss", "0,1.5", "1,1.25", ""]).encode())
    assert read_run(path).columns == {"step": [0, 1], "loss": [1.5, 1.25]}


def test_a_pipe_or_a_device_is_refused_without_being_opened(tmp_path: Path) -> None:
    """Opening a pipe waits for its writer, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "run.csv")
    for path in (tmp_path / "run.csv", Path("/dev/zero")):
        with pytest.raises(UnreadableRun, match="a pipe or a device"):
            read_run(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """What cannot be opened is named."""
    with pytest.raises(UnreadableRun, match="cannot be read"):
        read_run(tmp_path)


@given(data=st.binary(max_size=400), suffix=st.sampled_from([".csv", ".jsonl", ".json", ""]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    """Whatever is in a file, the answer is a run or a message."""
    read_or_refused(written(tmp_path_factory.mktemp("any"), f"r{suffix}", data))


cells = st.one_of(st.text(max_size=6), st.sampled_from(["0", "nan", "-inf", "1e999", '"', "\x00", "\n", "１"]))


@given(st.lists(st.lists(cells, min_size=1, max_size=4), max_size=20))
def test_any_csv_under_a_good_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    """Rows that are good are kept, whatever stands between them."""
    text = "step,loss,skipped\n" + "\n".join(",".join(row) for row in rows)
    read_or_refused(written(tmp_path_factory.mktemp("csv"), "r.csv", text.encode("utf-8", "surrogatepass")))


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3),
)
entries = st.dictionaries(st.sampled_from(["step", "loss", "grad_norm", "learning_rate", "skipped", "x"]), values)


@given(st.lists(st.one_of(entries, values), max_size=10), st.booleans())
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, items: list[object], trainer: bool
) -> None:
    """Objects of any shape are taken or skipped one by one."""
    text = json.dumps({"log_history": items}) if trainer else "\n".join(json.dumps(item) for item in items)
    read_or_refused(written(tmp_path_factory.mktemp("json"), "r.json", text))


def read_or_refused(path: Path) -> None:
    """Read a file; a refusal names it, and a run that was read is whole."""
    try:
        run = read_run(path)
    except ReplayError as error:
        message = str(error)
        if str(path) not in message:
            raise
        return
    assert len(run.rows) == len(run.columns["step"]) > 0
    assert all(isinstance(step, int) for step in run.columns["step"])
