"""Who may send how much of its backlog: one pace for all, divided among those that are sending.

Pure. 37,500 nodes that come back together must not be a stampede, and one that comes back alone should not have to
wait: who is silent is promised only its share of all links, and has its share of those that are sending once it does.
"""

import math

BACKLOG_BYTES_PER_SECOND = 100e6
"""A thousand nodes of 8 GPUs and 40 metrics (5 KB a second each), drained at twenty times real time."""
SENDING_SECONDS = 5.0
"""Who has sent nothing of its backlog for so long is no longer counted as sending."""
BURST_SECONDS = 2.0
"""What was not used of the pace may be made up for so long: senders are not on a common beat."""


class Grants:
    """Divides ``bytes_per_second``. ``now`` is monotonic seconds."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._sending: dict[object, float] = {}
        self._left = math.inf
        self._filled_at = -math.inf

    def take(self, who: object, size: int, now: float) -> float:
        """Let ``who`` send ``size`` bytes of backlog: 0.0, or the seconds after which there will be room for it.

        It is a bound on all of them together, for those who do not keep to what they were granted.
        """
        self._sending[who] = now
        pace = self.bytes_per_second
        burst = max(BURST_SECONDS * pace, size)
        self._left = min(burst, self._left + pace * max(0.0, now - self._filled_at))
        self._filled_at = now
        if self._left < size:
            return (size - self._left) / pace
        self._left -= size
        return 0.0

    def left(self, who: object) -> None:
        """Forget ``who``: its share goes to the others."""
        self._sending.pop(who, None)

    @property
    def sending(self) -> int:
        """How many were counted as sending when shares were made last."""
        return len(self._sending)

    def shares(self, links: int, now: float) -> tuple[float, float]:
        """The pace of a link that is sending its backlog, and of one that is not (yet)."""
        for who in [who for who, at in self._sending.items() if now - at > SENDING_SECONDS]:
            del self._sending[who]
        return self.bytes_per_second / max(1, len(self._sending)), self.bytes_per_second / max(1, links)

    def is_sending(self, who: object) -> bool:
        """Whether ``who`` is counted as sending."""
        return who in self._sending
