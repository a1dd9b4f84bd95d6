"""The layout of the heatmap and the channels that somebody looks at. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

from dashboards.fleet import FleetState
from dashboards.heat import CHANNELS, HeatCells, Layout

LAYOUT_SECONDS = 10.0
"""A layout of 37,500 nodes is 0.6 MB: while a large fleet comes up, and nodes come every second, it goes out so often.
One of GPUs is sent at once."""


class HeatChannels:
    """What was sent of the heatmap. ``layout`` is the one that all cells are of; ``layout_number`` grows with each."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.layout_number = 0
        self._laid_out_at = 0.0
        self._cells: dict[str, HeatCells] = {}

    def lay_out(self, fleet: FleetState, now: float) -> Layout:
        """The layout as it is to be at ``now`` (UTC seconds): a new one if GPUs have come or gone and it is time."""
        held = self.layout
        if held is not None and held.compactions == fleet.compactions:
            young = 0.0 <= now - self._laid_out_at < LAYOUT_SECONDS
            if held.revision == fleet.revision or (young and not held.per_gpu):
                return held
        self._laid_out_at = now
        self.layout = Layout.of(fleet)
        self.layout_number += 1
        return self.layout

    def changes(self, fleet: FleetState, now: float, watched: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """For each channel of ``watched``, what has changed; the others are forgotten."""
        layout = self.lay_out(fleet, now)
        self._cells = {name: self._of(name) for name in watched if name in CHANNELS}
        for name, cells in self._cells.items():
            yield name, cells.changes(fleet, layout, now)

    def whole(self, fleet: FleetState, now: float, name: str) -> dict[str, Any]:
        """All cells of a channel, as those who look at it have them."""
        cells = self._cells[name] = self._of(name)
        return cells.whole(fleet, self.lay_out(fleet, now), now)

    def _of(self, name: str) -> HeatCells:
        return self._cells.get(name) or HeatCells(CHANNELS[name])
