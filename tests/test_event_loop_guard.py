"""The guard of tests/conftest.py over the event loop does bite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from blockbuster import BlockingError

REPOSITORY = Path(__file__).resolve().parent.parent


def blocking_function_in(file: str) -> Callable[[], None]:
    """Return a function that blocks, as if it stood in the file."""
    scope: dict[str, Callable[[], None]] = {}
    exec(compile("import time\ndef block():\n    time.sleep(0)\n", str(REPOSITORY / file), "exec"), scope)
    return scope["block"]


async def test_a_blocking_call_of_the_server_inside_the_loop_is_an_error() -> None:
    """NVML, SQLite and files go to a thread or a child process; a test fails where they do not."""
    with pytest.raises(BlockingError):
        blocking_function_in("collectors/agent.py")()


async def test_a_test_may_block_its_own_loop() -> None:
    """Only the server's code is held to it."""
    blocking_function_in("tests/test_event_loop_guard.py")()


def test_the_server_may_block_outside_the_loop() -> None:
    """A thread or a command may wait."""
    blocking_function_in("collectors/agent.py")()
