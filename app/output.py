"""What commands print: for people to standard output by default; with ``--json`` only JSON lines go there."""

import sys
from typing import Any

from rich.console import Console

from telemetry_bus.json_text import dumps


def console(*, as_json: bool) -> Console:
    """Where words for people go: standard error once standard output is for JSON lines."""
    return Console(stderr=as_json, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON line on standard output, at once."""
    sys.stdout.write(dumps(value) + "\n")
    sys.stdout.flush()
