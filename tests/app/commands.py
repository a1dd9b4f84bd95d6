"""What the tests of the commands share: the real command as a process, and configurations for it."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from app.cli import app
from tests.fakes.webhook_server import SECRET

REPOSITORY = Path(__file__).resolve().parents[2]
END_SECONDS = 50.0


@dataclass(frozen=True)
class Ended:
    """How a command ended. `lines` are those of standard output."""

    status: int
    lines: list[str]
    error: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines: every line must be one."""
        return [json.loads(line, parse_constant=_not_json) for line in self.lines]


def _not_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON: non-finite numbers are strings")


async def nantucket(*words: str | Path, **environment: str) -> Ended:
    """Run the real command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NANTUCKET_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", *words, cwd=REPOSITORY, env={**clean, **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(END_SECONDS):
        out, error = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in error.decode()
    return Ended(process.returncode, out.decode().splitlines(), error.decode())


def in_this_process(*words: str | Path) -> Ended:
    """Run the command here: without the seconds that a process needs to import everything."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout.splitlines(), result.stderr)


def configured(folder: Path, receivers: dict[str, str], more: Sequence[str] = ()) -> Path:
    """A configuration file with `receivers` (name to address), everything in `folder`."""
    lines = [f"state = {json.dumps(str(folder / 'state'))}", *more]
    for name, url in receivers.items():
        lines += [f"[receivers.{name}]", f"url = {json.dumps(url)}", f"secret = {json.dumps(SECRET)}"]
    path = folder / "nantucket.toml"
    path.write_text("\n".join(lines))
    return path
