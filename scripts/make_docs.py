"""Write the pages of docs/ that are made from the code, or with --check say which are out of date.

`GENERATED` is the table of such pages: a path under docs/ and the function that returns its text. `--check` changes
nothing and exits with 1 if a page differs from what the code says now.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.configuration_page import NOTE, configuration_page
from scripts.metrics_page import metrics_page
from scripts.xids_page import xids_page

REPOSITORY = Path(__file__).resolve().parent.parent


def commands_page() -> str:
    """Return the reference of every command and option, as typer writes it from app/cli.py."""
    command = [sys.executable, "-m", "typer", "app.cli", "utils", "docs", "--name", "nantucket", "--title", "Commands"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NANTUCKET_")}
    environment["NO_COLOR"] = "1"
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return NOTE + done.stdout.strip() + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "configuration.md": configuration_page,
    "metrics.md": metrics_page,
    "xids.md": xids_page,
}


def main() -> int:
    """Write the pages, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_docs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, page in GENERATED.items():
        path = REPOSITORY / "docs" / name
        text = page()
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(f"docs/{name} is out of date: run `make docs` and commit it")
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print("\n".join(stale), end="\n" if stale else "", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
