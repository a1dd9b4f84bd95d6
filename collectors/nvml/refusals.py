"""What a card or a driver does not have is asked for again only rarely, and still counted each time it is due."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from collectors.nvml.driver import DriverFault

ASK_AGAIN_SECONDS = 600.0
"""A refused field costs as much as one that is given, and a card of today refuses about thirty. One may come with a
change of the card's mode; a new driver comes with a new process, which asks everything."""
REFUSED_TIMES = 3
"""Something that has never been given counts as not there after this many refusals. What was given once is asked for
each time: a driver in trouble may say "not supported" for a while."""

_K = TypeVar("_K", bound=Hashable)


class Refusals(Generic[_K]):
    """The lasting faults of one GPU, by what was asked."""

    def __init__(self) -> None:
        self._given: set[_K] = set()
        self._times: Counter[_K] = Counter()
        self._faults: dict[_K, tuple[DriverFault, float]] = {}
        self.version = 0
        """Changes whenever something is found not to be there."""

    def get(self, key: _K, now: float) -> DriverFault | None:
        """The fault of ``key``, while it need not be asked for."""
        if not self._faults or (found := self._faults.get(key)) is None:
            return None
        fault, until = found
        if now < until:
            return fault
        del self._faults[key]
        return None

    def given(self, keys: Iterable[_K]) -> None:
        """These were given."""
        self._given.update(keys)

    def note(self, key: _K, fault: DriverFault, now: float) -> None:
        """``key`` was refused."""
        if not fault.lasting or key in self._given:
            return
        self._times[key] += 1
        if self._times[key] >= REFUSED_TIMES:
            self._faults[key] = fault, now + ASK_AGAIN_SECONDS
            self.version += 1

    def until(self, keys: Iterable[_K], default: float) -> float:
        """When the first of ``keys`` is to be asked for again; ``default`` if none of them is refused."""
        return min((self._faults[key][1] for key in keys if key in self._faults), default=default)
