"""What a card or a driver does not have is asked for again only rarely, and still counted each time it is due."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from collectors.nvml.driver import DriverFault

ASK_AGAIN_SECONDS = 600.0
"""A refused field costs as much as one that is given, and a card of today refuses about thirty. It may come with a
change of the card's mode; a new driver comes with a new process, which asks everything."""

_K = TypeVar("_K", bound=Hashable)


class Refusals(Generic[_K]):
    """The lasting faults of one GPU, by what was asked."""

    def __init__(self) -> None:
        self._faults: dict[_K, tuple[DriverFault, float]] = {}
        self.version = 0
        """Changes whenever something new is refused."""

    def get(self, key: _K, now: float) -> DriverFault | None:
        """The fault of ``key``, while it need not be asked for."""
        if not self._faults or (found := self._faults.get(key)) is None:
            return None
        fault, until = found
        if now < until:
            return fault
        del self._faults[key]
        return None

    def note(self, key: _K, fault: DriverFault, now: float) -> None:
        """Keep ``fault`` if it is one that lasts."""
        if fault.lasting:
            self._faults[key] = fault, now + ASK_AGAIN_SECONDS
            self.version += 1

    def until(self, default: float) -> float:
        """When the first of them is to be asked for again; ``default`` if there is none."""
        return min((until for _, until in self._faults.values()), default=default)
