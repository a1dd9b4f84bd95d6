"""What ``faulthandler`` writes of a process that hangs, as the frames of the thread that trains. Text in, cells out.

The text is a stranger's: whatever it holds, a bounded event comes of it, or none.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

FRAMES_MAX = 40
FRAME_CHARACTERS_MAX = 240
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]{4,16})\b.*\(most recent call first\):")
_FRAME = re.compile(r'  File "([^"]{0,4096})", line (\d{1,9}|\?\?\?) in (.{0,1024})')


def stacks_in(text: str) -> dict[str, list[str]]:
    """The frames of each thread, innermost first, as ``function (file:line)``. A later dump of a thread counts."""
    found: dict[str, list[str]] = {}
    frames: list[str] | None = None
    for line in text.splitlines():
        if (thread := _THREAD.fullmatch(line)) is not None:
            frames = found[thread[1]] = []
        elif frames is not None and (frame := _FRAME.fullmatch(line)) is not None:
            if len(frames) < FRAMES_MAX:
                frames.append(_shown(frame[3], frame[1], frame[2]))
        else:
            frames = None
    return found


def _shown(function: str, path: str, line: str) -> str:
    short = "/".join(path.split("/")[-3:])
    return "".join(each if each.isprintable() else "?" for each in f"{function} ({short}:{line})")[
        :FRAME_CHARACTERS_MAX
    ]


def stack_cells(text: str, thread: str) -> dict[str, str] | None:
    """``message`` and ``detail`` of a ``stack`` event: where ``thread`` stands, else the only other one there is."""
    stacks = {name: frames for name, frames in stacks_in(text).items() if frames}
    frames = stacks.get(thread) or (next(iter(stacks.values())) if len(stacks) == 1 else None)
    if frames is None:
        return None
    return {"message": frames[0], "detail": json.dumps({"frames": frames, "threads": len(stacks)})}


def read_stack(row: dict[str, Any]) -> None:
    """Where a ``stack`` event holds the text itself (the SDK read its own pipe), put its frames in its place."""
    detail: Mapping[str, Any] = json.loads(row.get("detail", "{}"))
    cells = stack_cells(str(row.get("message", "")), str(detail.get("thread", "")))
    if cells is not None:
        row.update(cells)
