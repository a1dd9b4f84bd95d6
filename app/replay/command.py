"""``nantucket replay``: read, run, print."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.replay.errors import ReplayError
from app.replay.readers import Run, read_run
from app.replay.run import ReplayResult, job_name, replay_run
from detectors import run_detectors
from telemetry_bus.json_text import dumps

DONE, FAILED, WRONG_USAGE = 0, 1, 2
FINDINGS_SHOWN = 20
"""Findings of a file that the table names; the JSON has all."""


def replay_command(paths: Sequence[Path], json: bool, plot: Path | None) -> int:
    """Replay every file and print what was found; the exit status.

    With ``json`` a line for each file goes to standard output and everything else to standard error. A file that
    cannot be read makes the status 1, and the others are still replayed. ``plot`` is a folder for a picture of each
    run.
    """
    said = Console(stderr=True, highlight=False, soft_wrap=True)
    if not paths:
        said.print("replay: expected at least one file, found none.", markup=False)
        return WRONG_USAGE
    status = DONE
    for path, picture in zip(paths, picture_names(paths), strict=True):
        try:
            run = read_run(path)
            result = replay_run(run, [config.build() for config in run_detectors()])
        except ReplayError as error:
            said.print(f"replay: {error}", markup=False)
            status = FAILED
            continue
        for problem in result.problems:
            said.print(f"replay: {problem}", markup=False)
        if result.skipped_rows:
            said.print(f"replay: {path}: {result.skipped_rows} rows skipped, {result.rows} read.", markup=False)
        if json:
            sys.stdout.write(dumps(result.as_json()) + "\n")
            sys.stdout.flush()
        else:
            _print(result)
        if plot is not None and (failure := _plot(run, result, plot / f"{picture}.png")) is not None:
            said.print(f"replay: {failure}", markup=False)
            status = FAILED
    return status


def picture_names(paths: Sequence[Path]) -> list[str]:
    """A name for the picture of each run; the second `train` is `train-2`."""
    given: dict[str, int] = {}
    names: list[str] = []
    for path in paths:
        base = name = job_name(path)
        while name in given:
            given[base] += 1
            name = f"{base}-{given[base]}"
        given[name] = 1
        names.append(name)
    return names


def _plot(run: Run, result: ReplayResult, path: Path) -> str | None:
    """Draw ``run``; what to say if that is not possible."""
    from app.replay.plot import plot_run  # noqa: PLC0415  matplotlib takes half a second to import

    try:
        plot_run(run, result, path)
    except OSError as error:
        return f"{path}: no picture can be written there ({error}); expected a folder that can be written."
    except Exception as error:  # noqa: BLE001 - whatever matplotlib makes of a run: its findings are told already
        return f"{path}: no picture can be drawn of {run.path} ({type(error).__name__}: {error})."
    return None


def _print(result: ReplayResult) -> None:
    pages = ", ".join(str(page.step) for page in result.pages) or "nobody would have been woken"
    console = Console(highlight=False)
    console.print(f"{result.file}: {result.rows} rows; pages at step: {pages}", markup=False)
    if not result.findings:
        return
    table = Table("step", "severity", "detector", "since step", "what", box=None, pad_edge=False)
    for item in result.findings[:FINDINGS_SHOWN]:
        finding = item.finding
        onset = "" if finding.onset_step is None else str(finding.onset_step)
        table.add_row(str(item.step), finding.severity.value, finding.detector, onset, finding.title)
    console.print(table)
    if len(result.findings) > FINDINGS_SHOWN:
        console.print(f"and {len(result.findings) - FINDINGS_SHOWN} more; --json has all", markup=False)
