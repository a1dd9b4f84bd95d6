"""Latches: which of many things have been bad for long enough to be said, and well for long enough to be taken back."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LATCHES_MAX = 131_072
"""As many as there are sources; what is bad beyond them is counted and waits."""
TOGETHER_MIN = 9
"""So many that go bad between two ticks are one trouble (a rack, a switch, a gateway) and are said once, together."""


@dataclass(slots=True)
class Group:
    """What was said at once: the names, since when the first of them was bad (UTC seconds), and which still are.

    ``place`` is what the firing finding said of where the trouble is: its end is said of the very same.
    """

    names: tuple[str, ...]
    since: float
    still: set[str] = field(default_factory=set)
    place: Mapping[str, Any] = field(default_factory=dict)


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

    def update(self, now: float, bad: Iterable[str], apart: Container[str] = ()) -> tuple[list[Group], list[Group]]:
        """Take what is bad at this tick; the groups that are to be said now, and those that are over.

        Names in ``apart`` (what is simulated) are never in one group with others.
        """
        for name in bad:
            if name not in self._since:
                if len(self._since) >= LATCHES_MAX:
                    self.left_out += 1
                    continue
                self._since[name] = now
            self._last_bad[name] = now
        self._not_from_the_future(now)
        well = [
            name for name, last in self._last_bad.items() if now - last > (self._clear if name in self._raised else 0.0)
        ]
        for name in well:
            del self._since[name], self._last_bad[name]
            self._raised.discard(name)
        return self._raise(now, apart), self._take_back(set(well))

    def is_raised(self, name: str) -> bool:
        """Whether ``name`` was said to be bad and has not been taken back."""
        return name in self._raised

    def adopt(self, group: Group, now: float) -> bool:
        """Take up what was said before a restart: it is neither said again nor forgotten. Whether it is news here.

        Where the names have gone bad here too, they are the same trouble, and keep the names that are known here (a
        finding has only the first of many).
        """
        for own in self._groups:
            if not own.still.isdisjoint(group.names):
                own.since, own.place = group.since, group.place
                return False
        if len(self._since) + len(group.names) > LATCHES_MAX:
            self.left_out += len(group.names)
            return False
        for name in group.names:
            self._since[name], self._last_bad[name] = min(group.since, now), now
        self._raised.update(group.names)
        self._groups.append(Group(group.names, group.since, set(group.names), group.place))
        return True

    def _not_from_the_future(self, now: float) -> None:
        """The bus's clock may be set back: what was bad later than now was so now."""
        for times in (self._since, self._last_bad):
            times.update({name: now for name, time in times.items() if time > now})

    def _raise(self, now: float, apart: Container[str]) -> list[Group]:
        due = sorted(
            name for name, since in self._since.items() if name not in self._raised and now - since >= self._hold
        )
        if not due:
            return []
        self._raised.update(due)
        raised = []
        for kind in ([name for name in due if name not in apart], [name for name in due if name in apart]):
            parts = [tuple(kind)] if len(kind) >= TOGETHER_MIN else [(name,) for name in kind]
            raised += [Group(part, min(self._since[name] for name in part), set(part)) for part in parts]
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
