"""Processes that use a bus and may be killed at any moment: one parent that has imported everything, and its forks.

The parent reads one JSON object a line from standard input, ``{"do", "url", "name", "count", "out"}``, forks, and
writes the child's process id. The child writes a line to the file ``out`` after each call that has returned.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TextIO

from telemetry_bus import Earliest, Topic, open_bus
from telemetry_bus.runtime.clock import SystemClock

PUBLISHERS = 4
"""Publishers at once in a child, so that one commit carries several of them."""


def _numbers(order: dict[str, Any]) -> Iterable[int]:
    return range(order["count"]) if order["count"] else itertools.count()


async def publish(order: dict[str, Any], out: TextIO) -> None:
    """Publish ``name:number`` to telemetry.train, and write offset and payload when it has returned."""
    numbers = iter(_numbers(order))
    async with open_bus(order["url"], SystemClock()) as bus:

        async def publisher() -> None:
            for number in numbers:
                text = f"{order['name']}:{number}"
                offsets = await bus.publish(Topic.TRAIN, [text.encode()])
                out.write(f"{offsets[0]} {text}\n")

        async with asyncio.TaskGroup() as group:
            for _ in range(PUBLISHERS):
                group.create_task(publisher())


async def commit(order: dict[str, Any], out: TextIO) -> None:
    """Commit 0, 1, 2, ... of telemetry.train for the group ``name``, and write each when it has returned."""
    async with open_bus(order["url"], SystemClock()) as bus:
        for number in _numbers(order):
            await bus.commit(order["name"], {Topic.TRAIN: {0: number}})
            out.write(f"{number}\n")


async def read(order: dict[str, Any], out: TextIO) -> None:
    """Read telemetry.train from the earliest on and write offset and payload of ``count`` records."""
    left = order["count"]
    async with (
        open_bus(order["url"], SystemClock()) as bus,
        bus.subscribe([Topic.TRAIN], Earliest()) as subscription,
    ):
        async for records in subscription:
            out.writelines(f"{record.offset} {record.payload.decode()}\n" for record in records)
            left -= len(records)
            if left <= 0:
                return


WORK: dict[str, Callable[[dict[str, Any], TextIO], Awaitable[None]]] = {
    "publish": publish,
    "commit": commit,
    "read": read,
}


def child(order: dict[str, Any]) -> None:
    """Do what was ordered; a failure is written to ``out`` as well."""
    with open(order["out"], "a", buffering=1, encoding="utf-8") as out:  # noqa: PTH123  line by line, unbuffered

        async def work() -> None:
            await WORK[order["do"]](order, out)

        try:
            asyncio.run(work())
        except Exception:
            out.write(traceback.format_exc())
            raise


def main() -> None:
    """Fork a child for every order."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line))
            finally:
                os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
