"""Real processes with an environment of the test's choosing, which end with the test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_WAIT = "import sys; print('here', flush=True); sys.stdin.read()"


@contextmanager
def running(environment: Mapping[str, str], *, user: int | None = None) -> Iterator[int]:
    """A process that does nothing, with ``environment`` and nothing else; its number. It has run its own program by
    then: before that, its environment would still be the test's."""
    command = [sys.executable, "-S", "-c", _WAIT]
    with subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        yield process.pid
        process.kill()
