"""The collector's end of the pipe: start the child, ask it with a deadline, kill it."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import collectors

LINE_BYTES_MAX = 1 << 20
"""A GPU is some 1.2 KiB of JSON; 16 GPUs with 7 instances each are 140 KiB."""
DEATH_SECONDS = 2.0
"""A killed process is gone at once unless it is stuck in the kernel, which may be for ever."""


class ChildGone(Exception):
    """The child did not answer as it should. ``hung`` tells a missed deadline from a death."""

    def __init__(self, message: str, *, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung


class Child:
    """A running ``collectors.nvml.child``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._request = 0

    @classmethod
    async def start(cls, environment: Mapping[str, str]) -> Self:
        """Start the process; it says by :meth:`receive` whether it has a driver."""
        root = str(Path(collectors.__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, **environment}
        # -P: what lies in the working folder is not imported.
        arguments = sys.executable, "-P", "-m", "collectors.nvml.child"
        process = await asyncio.create_subprocess_exec(
            *arguments, stdin=PIPE, stdout=PIPE, env=env, limit=LINE_BYTES_MAX
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def dead(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def ask(self, now: float, deadline_seconds: float) -> dict[str, Any]:
        """One reading of all GPUs, for what is due at ``now`` (UTC seconds). Raises :class:`ChildGone`."""
        self._request += 1
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{self._request} {now!r}\n".encode())
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildGone(f"the reader of the driver has died: {error}", hung=False) from error
        while True:
            answer = await self.receive(deadline_seconds)
            # An earlier number answers a reading that was given up by who asked.
            if answer.get("request") == self._request:
                return answer

    async def receive(self, deadline_seconds: float) -> dict[str, Any]:
        """The next line of the child. Raises :class:`ChildGone`."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(deadline_seconds):
                line = await self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise ChildGone(
                    f"the reader of the driver has died (exit status {self._process.returncode})", hung=False
                )
            answer = json.loads(line)
        except TimeoutError as error:
            raise ChildGone(f"the driver did not answer within {deadline_seconds:g} s", hung=True) from error
        except ValueError as error:
            raise ChildGone(f"the reader of the driver wrote what is no answer: {error}", hung=False) from error
        if not isinstance(answer, dict):
            raise ChildGone(f"expected an object from the reader of the driver, found {line[:200]!r}", hung=False)
        return answer

    async def close(self) -> None:
        """Let it end by itself if it does so at once, else kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not await self._gone():
            await self.kill()

    async def kill(self) -> bool:
        """Kill it. False if it is still there: a process stuck in the kernel cannot be killed."""
        if not self.dead:
            self._process.kill()
        return await self._gone()

    async def _gone(self) -> bool:
        try:
            async with asyncio.timeout(DEATH_SECONDS):
                await self._process.wait()
        except TimeoutError:
            return False
        return True
