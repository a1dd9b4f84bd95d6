"""``nantucket profiling``: asks this node's collector to leave the profiling counters alone for a while."""

import asyncio
import json
from pathlib import Path
from typing import Any

from app.output import console, print_json
from app.settings import Settings
from collectors.profiling import PATH

ANSWER_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 16 * 1024


async def switch_profiling(settings: Settings, pause_seconds: float | None, *, as_json: bool) -> int:
    """Pause for ``pause_seconds`` (0: resume; ``None``: only ask), and say how it stands. 1 if nobody answers."""
    out = console(as_json=as_json)
    line = f"GET {PATH}" if pause_seconds is None else f"POST {PATH}?pause_seconds={pause_seconds:g}"
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            said = await _ask(settings.socket_path, line)
    except (OSError, ValueError) as error:
        found = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        out.print(
            f"no collector answers at {settings.socket_path}: {found}. Expected the socket of a running nantucket "
            "collect or up: start it, or name its --socket or --state.",
            markup=False,
        )
        return 1
    if as_json:
        print_json(said)
    elif said.get("paused"):
        out.print(f"Profiling is paused for {said['seconds_left']:.0f} s more.", markup=False)
    else:
        out.print("Profiling metrics are read.", markup=False)
    return 0


async def _ask(path: Path, line: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"{line} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX and (more := await reader.read(ANSWER_BYTES_MAX)):
            answer += more
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    said = json.loads(body) if body else {}
    if b" 200 " not in head.split(b"\r\n")[0] or not isinstance(said, dict):
        raise ValueError(f"it said {answer[:200]!r}")
    return said
