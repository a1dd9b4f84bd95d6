"""The collector's end of the pipes to the process that talks to the driver: start it, ask it with a deadline, kill it.

What it says by itself (an XID) is told the moment it comes. It is a protocol and not a stream with a task, so that a
second in which nothing happens costs one callback.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import collectors

LINE_BYTES_MAX = 1 << 20
"""A GPU is some 3 KiB of JSON where everything of it is due; 16 GPUs with 7 instances each are 300 KiB."""
DEATH_SECONDS = 2.0
"""A killed process is gone at once unless it is stuck in the kernel, which may be for ever."""
_STDOUT = 1


class ChildGone(Exception):
    """The child did not answer as it should. ``hung`` tells a missed deadline from a death."""

    def __init__(self, message: str, *, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung


class Child(asyncio.SubprocessProtocol):
    """A running ``collectors.nvml.child``. ``hear`` is told what it says by itself."""

    def __init__(self, hear: Callable[[Mapping[str, Any]], None]) -> None:
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[dict[str, Any]] = loop.create_future()
        """Its first word: whether it has a driver, and what is there."""
        self._hear = hear
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._gone = loop.create_future()
        self._begun = b""
        self._request = 0
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(
        cls, environment: Mapping[str, str], fast: Sequence[str], hear: Callable[[Mapping[str, Any]], None]
    ) -> Self:
        """Start the process; ``hello`` says whether it has a driver. ``fast`` are read at every request."""
        root = str(Path(collectors.__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, **environment}
        # -P: what lies in the working folder is not imported.
        words = [sys.executable, "-P", "-m", "collectors.nvml.child", *fast]
        loop = asyncio.get_running_loop()
        _, child = await loop.subprocess_exec(lambda: cls(hear), *words, stderr=None, env=env)
        return child

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._transport is not None
        return self._transport.get_pid()

    @property
    def dead(self) -> bool:
        """Whether the process is gone."""
        return self._gone.done()

    async def greeted(self, deadline_seconds: float) -> dict[str, Any]:
        """Its first word. Raises :class:`ChildGone`; after a missed deadline it may still come."""
        return await self._waited(self.hello, deadline_seconds)

    async def ask(self, now: float, deadline_seconds: float, *, profile: bool = True) -> dict[str, Any]:
        """One reading of all GPUs, for what is due at ``now`` (UTC seconds). Raises :class:`ChildGone`."""
        assert self._transport is not None
        self._request += 1
        self._answer = asyncio.get_running_loop().create_future()
        if self.dead:
            raise ChildGone("the reader of the driver has died", hung=False)
        pipe = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        pipe.write(f"{self._request} {now!r} {profile:d}\n".encode())
        answer = await self._waited(self._answer, deadline_seconds)
        if "gone" in answer:
            raise ChildGone(f"the driver is gone or another one: {answer['gone']}", hung=False)
        return answer

    async def _waited(self, answer: asyncio.Future[dict[str, Any]], seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(answer)
        except TimeoutError as error:
            raise ChildGone(f"the driver did not answer within {seconds:g} s", hung=True) from error

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Take whole lines."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._begun) > LINE_BYTES_MAX:
            self._lost(f"the reader of the driver wrote a line of over {LINE_BYTES_MAX} bytes")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It says nothing more."""
        if fd == _STDOUT:
            self._lost("the reader of the driver has died")

    def process_exited(self) -> None:
        """It is gone."""
        assert self._transport is not None
        if not self._gone.done():
            self._gone.set_result(None)
        self._lost(f"the reader of the driver has died (exit status {self._transport.get_returncode()})")

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            self._lost(f"expected an object from the reader of the driver, found {line[:200]!r}")
        elif "xid" in said or "xids" in said:
            self._hear(said)
        elif not self.hello.done():
            self.hello.set_result(said)
        else:
            self._answer_with(said)

    def _answer_with(self, said: dict[str, Any]) -> None:
        """Another number answers a reading that was given up by who asked."""
        is_awaited = self._answer is not None and not self._answer.done()
        if self._answer is not None and is_awaited and said.get("request", self._request) == self._request:
            self._answer.set_result(said)

    def _lost(self, why: str) -> None:
        for waiting in (self.hello, self._answer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ChildGone(why, hung=False))
                waiting.exception()  # seen: whoever waited may have gone

    async def close(self) -> None:
        """Let it end by itself if it does so at once, else kill it."""
        assert self._transport is not None
        if (pipe := self._transport.get_pipe_transport(0)) is not None:
            pipe.close()
        if not await self._ended():
            await self.kill()

    async def kill(self) -> bool:
        """Kill it. False if it is still there: a process stuck in the kernel cannot be killed."""
        assert self._transport is not None
        if not self.dead:
            self._transport.kill()
        return await self._ended()

    async def _ended(self) -> bool:
        assert self._transport is not None
        try:
            async with asyncio.timeout(DEATH_SECONDS):
                await asyncio.shield(self._gone)
        except TimeoutError:
            return False
        self._transport.close()
        return True
