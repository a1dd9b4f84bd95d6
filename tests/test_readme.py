"""What README.md and the pages of docs/ tell somebody to do works, and what they point at is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli import app
from app.processes import talking
from app.settings import load

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
COMMAND = ".venv/bin/nantucket"
READY_SECONDS = 50.0


def blocks(language: str) -> list[str]:
    """The blocks of the README in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every call of the command in the README, in blocks and in the text, as words."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(rf"`({re.escape(COMMAND)} [^`]*)`", README)
    return [shlex.split(line, comments=True) for line in lines if line.startswith(COMMAND)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_link_to_a_file_leads_to_one(page: Path) -> None:
    """Relative links of a page exist in the repository."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    there = [link for link in links if "://" not in link]
    assert [link for link in there if not (page.parent / link).exists()] == []


def test_the_command_is_written_as_a_clone_has_it() -> None:
    """Nothing puts `nantucket` on the path: whoever types a line of the README finds the program."""
    typed = [line for block in blocks("sh") for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", README)
    assert [line for line in typed if re.match(r"(nantucket|python) ", line)] == []
    assert len(commands()) >= 5


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_readme_is_one_that_there_is(words: list[str]) -> None:
    """Its name, its options and their values are taken, and `--help` tells of it."""
    group: object = typer.main.get_command(app)
    name: list[str] = []
    for word in words[1:]:
        if not hasattr(group, "commands"):
            break
        name.append(word)
        group = group.commands[word]
    with group.make_context(name[-1], words[1 + len(name) :]) as context:  # type: ignore[attr-defined]
        assert context.args == []
    assert CliRunner().invoke(app, [*name, "--help"]).exit_code == 0


def as_a_shell(word: str) -> list[str]:
    """The word, or the files that its pattern names."""
    return [word] if "*" not in word else [str(path) for path in sorted(REPOSITORY.glob(word))]


@pytest.mark.parametrize("name", ["doctor", "replay"])
async def test_a_cheap_command_of_the_readme_runs(name: str, tmp_path: Path) -> None:
    """As typed in a clone, apart from where it writes."""
    (words,) = [words[1:] for words in commands() if words[1] == name]
    words = [str(tmp_path / "plots") if word == "plots/" else word for word in words]
    paths = [path for word in words for path in as_a_shell(word)]
    assert len(paths) >= len(words), "the shell finds no such file"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NANTUCKET_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", *paths,
        cwd=REPOSITORY, env={**clean, "NANTUCKET_STATE": str(tmp_path / "state")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    if name == "replay":
        assert len(list((tmp_path / "plots").glob("*.png"))) == len(
            list((REPOSITORY / "tests" / "corpus").glob("*.csv"))
        )


def test_the_configuration_of_the_readme_is_one(tmp_path: Path) -> None:
    """The block loads, and its one receiver is there."""
    (block,) = blocks("toml")
    path = tmp_path / "nantucket.toml"
    path.write_text(block)
    settings = load(path, {})
    assert settings.usd_per_gpu_hour == tomllib.loads(block)["usd_per_gpu_hour"]
    assert list(settings.receivers) == ["oncall"]


async def test_the_training_loop_of_the_readme_reports_its_steps(tmp_path: Path) -> None:
    """The block, with a `train` of its own, against a real collector: every step is on the bus."""
    (block,) = blocks("python")
    assert "range(1000)" in block
    steps = 20
    script = tmp_path / "loop.py"
    script.write_text("def train(step):\n    return 2.0, 1.0, 0\n\n" + block.replace("range(1000)", f"range({steps})"))
    state = str(tmp_path / "state")
    async with talking("collect", ["app.cli", "collect", "--state", state, "--json"]) as collecting:
        ready = await collecting.line(lambda line: line.get("ready"), READY_SECONDS)
        environment = {**os.environ, "NANTUCKET_URL": f"unix://{ready['socket']}"}
        job = await asyncio.create_subprocess_exec(
            sys.executable, str(script), env=environment, stderr=asyncio.subprocess.PIPE
        )
        _out, err = await job.communicate()
        assert (job.returncode, err) == (0, b"")
        tail = ["app.cli", "tail", "telemetry.train", "--since", "60", "--json", "--state", state]
        async with talking("tail", tail) as tailing:
            await tailing.line(lambda line: line["step"] == steps - 1, READY_SECONDS)
            rows = [line for line in tailing.lines if line["job"] == "leviathan-7b"]
    assert [row["step"] for row in rows] == list(range(steps)), json.dumps(rows)
