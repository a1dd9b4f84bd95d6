"""Latches: which of many things have been bad for long enough to be said, and well for long enough to be taken back."""

from collections.abc import Iterable
from dataclasses import dataclass, field

LATCHES_MAX = 131_072
"""As many as there are sources; what is bad beyond them is counted and waits."""
TOGETHER_MIN = 9
"""So many that go bad between two ticks are one trouble (a rack, a switch, a gateway) and are said once, together."""


@dataclass(slots=True)
class Group:
    """What was said at once: the names, since when the first of them was bad (UTC seconds), and which still are."""

    names: tuple[str, ...]
    since: float
    still: set[str] = field(default_factory=set)


class Latch:
    """Things by name. A name is raised after ``hold_seconds`` of bad ticks, and cleared after ``clear_seconds`` of
    good ones."""

    def __init__(self, hold_seconds: float, clear_seconds: float) -> None:
        self._hold, self._clear = hold_seconds, clear_seconds
        self._since: dict[str, float] = {}
        self._last_bad: dict[str, float] = {}
        self._groups: list[Group] = []
        self._raised: set[str] = set()
        self.left_out = 0

    def update(self, now: float, bad: Iterable[str]) -> tuple[list[Group], list[Group]]:
        """Take what is bad at this tick; the groups that are to be said now, and those that are over."""
        for name in bad:
            if name not in self._since:
                if len(self._since) >= LATCHES_MAX:
                    self.left_out += 1
                    continue
                self._since[name] = now
            self._last_bad[name] = now
        well = [
            name for name, last in self._last_bad.items() if now - last > (self._clear if name in self._raised else 0.0)
        ]
        for name in well:
            del self._since[name], self._last_bad[name]
            self._raised.discard(name)
        return self._raise(now), self._take_back(set(well))

    def _raise(self, now: float) -> list[Group]:
        due = sorted(
            name for name, since in self._since.items() if name not in self._raised and now - since >= self._hold
        )
        if not due:
            return []
        self._raised.update(due)
        parts = [tuple(due)] if len(due) >= TOGETHER_MIN else [(name,) for name in due]
        raised = [Group(part, min(self._since[name] for name in part), set(part)) for part in parts]
        self._groups.extend(raised)
        return raised

    def _take_back(self, well: set[str]) -> list[Group]:
        if not well:
            return []
        for group in self._groups:
            group.still -= well
        over = [group for group in self._groups if not group.still]
        self._groups = [group for group in self._groups if group.still]
        return over
