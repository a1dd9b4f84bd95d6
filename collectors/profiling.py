"""The pause switch of profiling, for who needs a GPU's counters for himself: Nsight Compute, CUPTI.

Asked on the socket on which training jobs deliver, so that whoever may run a job there may also profile it.
"""

import json
import math
from http import HTTPStatus
from urllib.parse import parse_qs

PATH = "/v1/profiling"
PAUSE_SECONDS = 1_800.0
"""A session with a profiler takes minutes. A pause ends by itself, so that a forgotten one costs half an hour."""
PAUSE_SECONDS_MAX = 14_400.0
"""Four hours; whoever needs longer asks again."""


class ProfilingSwitch:
    """Whether a node's profiling metrics are read. They are, until somebody pauses them."""

    def __init__(self) -> None:
        self._until = -math.inf

    def paused(self, now: float) -> bool:
        """Whether they are left alone at ``now`` (UTC seconds)."""
        return now < self._until

    def left(self, now: float) -> float:
        """Seconds until they are read again, 0 if they are."""
        return max(self._until - now, 0.0) if self.paused(now) else 0.0

    def pause(self, seconds: float, now: float) -> None:
        """Leave them alone for ``seconds`` from ``now`` on; 0 ends a pause. ValueError for another number."""
        if not 0 <= seconds <= PAUSE_SECONDS_MAX:
            raise ValueError(f"expected 0 to {PAUSE_SECONDS_MAX:g} seconds, found {seconds:g}")
        self._until = now + seconds if seconds else -math.inf

    def answer(self, head: bytes, now: float) -> bytes | None:
        """The HTTP answer to a request for :data:`PATH`; ``None`` for any other request.

        ``GET`` says how it stands, ``POST ?pause_seconds=N`` pauses, or resumes where N is 0.
        """
        words = head.split(b"\r\n", 1)[0].decode("ascii", "replace").split(" ")
        if len(words) != 3 or words[1].partition("?")[0] != PATH:
            return None
        if words[0] == "GET":
            return _answer(HTTPStatus.OK, self._said(now))
        if words[0] != "POST":
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, {"detail": f"here are GET and POST, found {words[0][:10]!r}"})
        try:
            self.pause(_seconds(words[1]), now)
        except ValueError as error:
            return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": f"pause_seconds: {error}"})
        return _answer(HTTPStatus.OK, self._said(now))

    def _said(self, now: float) -> dict[str, object]:
        return {"paused": self.paused(now), "seconds_left": round(self.left(now), 1)}


def _seconds(target: str) -> float:
    given = parse_qs(target.partition("?")[2]).get("pause_seconds", [str(PAUSE_SECONDS)])
    return float(given[-1][:32])


def _answer(status: HTTPStatus, body: dict[str, object]) -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text
