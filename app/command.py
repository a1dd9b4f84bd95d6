"""What all commands have in common: an option, a check, and how they run."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON lines to standard output, everything else to standard error.")
]


def finite(value: float | None) -> float | None:
    """An endless wait is no number of seconds, though it is above every minimum."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number of seconds, found {value}")
    return value


def run_command(work: Coroutine[Any, Any, int | None]) -> None:
    """Run ``work``; what it returns is the exit status."""
    raise typer.Exit(asyncio.run(work) or 0)
