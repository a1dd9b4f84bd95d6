"""Processes that a command starts, speaks with by JSON lines, and stops again: the demo and the benchmarks."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from app.settings import PREFIX

STOP_SECONDS = 10.0
"""How long a process may take to end after SIGTERM before it is killed."""
LINE_BYTES_MAX = 4 * 1024 * 1024
STDERR_LINES_KEPT = 50


class ProcessFailed(Exception):
    """A process ended, or did not say what was expected in time."""

    def __init__(self, name: str, what: str, stderr: Sequence[str]) -> None:
        said = "\n".join(stderr[-STDERR_LINES_KEPT:]) or "nothing"
        super().__init__(f"{name}: {what}. Its last words on standard error:\n{said}")


@dataclass(slots=True)
class Talking:
    """A running process whose standard output is JSON lines. ``lines`` holds all of them so far."""

    name: str
    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def line(self, wanted: Any, timeout_seconds: float) -> dict[str, Any]:
        """The first line for which ``wanted(line)`` is true, waiting for it if need be."""
        at = 0
        try:
            async with asyncio.timeout(timeout_seconds), self.news:
                while True:
                    for line in self.lines[at:]:
                        if wanted(line):
                            return line
                    at = len(self.lines)
                    if self.process.returncode is not None:
                        raise ProcessFailed(self.name, f"ended with status {self.process.returncode}", self.stderr)
                    await self.news.wait()
        except TimeoutError as error:
            raise ProcessFailed(
                self.name, f"did not say what was expected within {timeout_seconds:.0f} s", self.stderr
            ) from error

    async def say(self, text: str) -> None:
        """Write to its standard input, which was kept open."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        await self.process.stdin.drain()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after :data:`STOP_SECONDS`."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


@asynccontextmanager
async def talking(
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    keep_stdin: bool = False,
) -> AsyncIterator[Talking]:
    """Run ``python -m`` + ``command`` and stop it at the end of the block.

    ``stdin`` is written first: secrets go there, since a list of processes shows arguments and environments. Of this
    process's environment it gets what does not configure Nantucket (a demo must not write to somebody's bus, nor page
    somebody's receivers), and ``env`` besides.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**environment, **(env or {})}, limit=LINE_BYTES_MAX,
    )  # fmt: skip
    running = Talking(name, process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_read_lines(running))
        tasks.create_task(_read_stderr(running))
        assert process.stdin is not None
        process.stdin.write(stdin.encode())
        if not keep_stdin:
            process.stdin.close()
        try:
            yield running
        finally:
            await running.stop()


async def _read_lines(running: Talking) -> None:
    assert running.process.stdout is not None
    async for raw in running.process.stdout:
        try:
            line = json.loads(raw)
        except ValueError:
            running.stderr.append(raw.decode("utf-8", "replace").rstrip())
            continue
        async with running.news:
            running.lines.append(line)
            running.news.notify_all()
    await running.process.wait()
    async with running.news:
        running.news.notify_all()


async def _read_stderr(running: Talking) -> None:
    assert running.process.stderr is not None
    async for raw in running.process.stderr:
        running.stderr.append(raw.decode("utf-8", "replace").rstrip())
        del running.stderr[:-STDERR_LINES_KEPT]
