"""Pictures of replayed runs: whatever is in a run, its findings are told, and the next file is read."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.replay import replay_command

LARGEST = 1.7e308


def recorded(path: Path, losses: Sequence[float | str]) -> Path:
    """A CSV with these losses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))
    path.write_text(f"step,loss\n{rows}")
    return path


@pytest.mark.parametrize(
    "losses",
    [
        [LARGEST, -LARGEST, 1.0],
        [5e-324, LARGEST, 1.0],
        [5e-324, 1e99],
        [-1e100, 1e100],
        ["nan", "inf", "-inf"],
        [0.0, 0.0],
    ],
    ids=["largest of both signs", "smallest and largest", "over four hundred decades", "drawn", "no number", "zeros"],
)
def test_a_run_of_extreme_numbers_is_drawn(tmp_path: Path, losses: list[float | str]) -> None:
    """A number that no axis can span is marked like one that is not finite."""
    path = recorded(tmp_path / "run.csv", losses)
    assert replay_command([path], json=True, plot=tmp_path / "pictures") == 0
    assert (tmp_path / "pictures" / "run.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_the_same_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    """No picture is written over another, not even by a file that is named like the second of a name."""
    names = ("a/run.csv", "b/run.csv", "c/run-2.csv", "d/run.csv")
    paths = [recorded(tmp_path / name, [1.0, 2.0]) for name in names]
    assert replay_command(paths, json=True, plot=tmp_path / "pictures") == 0
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["run-2-2.png", "run-2.png", "run-3.png", "run.png"]


def test_a_picture_that_cannot_be_written_costs_no_finding_and_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The findings of both files are printed; what went wrong is said, and the status is 1."""
    paths = [recorded(tmp_path / name, [1.0, "nan", "nan"]) for name in ("one.csv", "two.csv")]
    (tmp_path / "pictures" / "one.png").mkdir(parents=True)
    assert replay_command(paths, json=True, plot=tmp_path / "pictures") == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["one.csv", "two.csv"]
    assert "one.png: no picture can be written there" in err
    assert (tmp_path / "pictures" / "two.png").is_file()
