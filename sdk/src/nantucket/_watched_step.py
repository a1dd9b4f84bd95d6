"""One optimizer step of a watched model: what was measured of it, until its numbers are on the host.

Numbers of a device are not there yet when the step ends. A finished step is handed to the sender's thread like a call
of ``run.log``; that thread asks :attr:`WatchedStep.ready`, without waiting, and then takes :meth:`WatchedStep.rows`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nantucket._gradients import UNCOUNTED, Piece
from nantucket._readback import Readback
from nantucket._reduction import Wait, seconds_waited
from nantucket._values import METRICS_MAX, Rows, number_of, plain, rows_of


class Parameters(NamedTuple):
    """The parameters that are watched: their names, layers and sizes on this rank, and the elements of all."""

    names: list[str]
    layers: list[str]
    sizes: Any
    """int64 tensor: elements on this rank."""
    total_elements: int


class WatchedStep:
    """What is known of one step. The training thread fills it in; once it is handed over it only reads."""

    def __init__(self, torch: Any, parameters: Parameters, now: float) -> None:
        self.torch, self.parameters = torch, parameters
        self.time = now
        self.number: int | None = None
        """Which step it is, once ``run.log`` or the count has said so."""
        self.values: dict[str, object] = {}
        """What ``run.log`` has said of it; goes before what was measured."""
        self.pieces: list[Piece] = []
        self.later: dict[str, Readback] = {}
        """Columns that come from a device: update_norm, loss_scale, skipped, and what ``run.log`` was given there."""
        self.losses: list[Readback] = []
        """What the model has said of itself, for each microbatch; their mean is the step's, or their sum."""
        self.losses_add = False
        self.waits: list[Wait] = []
        self.wants_layers = False
        self.closed = False
        self.found_bad = False

    @property
    def ready(self) -> bool:
        """Whether all of its numbers are on the host. It does not wait."""
        waiting: list[Piece | Readback | Wait] = [*self.pieces, *self.losses, *self.later.values(), *self.waits]
        return all(each.ready for each in waiting)

    def rows(self) -> Rows:
        """Its rows. Called by the sender's thread once it is :attr:`ready`."""
        measured = {name: value.values.item() for name, value in self.later.items()}
        if self.losses:
            total = sum(loss.values.item() for loss in self.losses)
            measured.setdefault("loss", total if self.losses_add else total / len(self.losses))
        if self.waits:
            measured["wait_seconds"] = seconds_waited(self.waits)
        if "skipped" in measured:
            measured["skipped"] = measured["skipped"] > 0
        scale = measured.get("loss_scale", 1.0)
        latest, bad = self._gathered()
        self.found_bad = bool(bad)
        if latest is not None:
            seen = ~(latest < 0)  # NaN was seen
            measured["grad_norm"] = latest[seen].double().square().sum().sqrt().item() / scale
            measured["watched_elements"] = int(self.parameters.sizes[seen].sum())
            measured.update(total_elements=self.parameters.total_elements, scope=self._scope(), nonfinite=0)
            measured.update(bad)
        values = {**measured, **{name: plain(value) for name, value in self.values.items() if value is not None}}
        found = rows_of(self.time, self.number, values)
        if self.wants_layers and latest is not None:
            found.metrics.extend(self._layers(latest, scale))
        return found

    def _gathered(self) -> tuple[Any, dict[str, Any]]:
        """The newest 2-norm of every parameter (-1 where there is none), and where the first bad element arose."""
        if not self.pieces:
            return None, {}
        latest = self.torch.full((len(self.parameters.names),), -1.0)
        seen = self.torch.zeros((len(self.parameters.names),), dtype=self.torch.int64)
        bad: dict[str, Any] = {}
        for piece in self.pieces:
            indices = self.torch.tensor(piece.indices)
            norms, greatest, counts = piece.numbers(self.torch)
            latest[indices] = norms
            if not bad and not bool(self.torch.isfinite(greatest).all()):
                bad = self._first(indices, greatest, counts)
                bad["microbatch"] = int(seen[indices[0]])
            seen[indices] += 1
        if int(seen.max()) <= 1:
            bad.pop("microbatch", None)
        return latest, bad

    def _first(self, indices: Any, greatest: Any, counts: Any) -> dict[str, Any]:
        """A gradient without a finite greatest magnitude has at least one such element, counted or not."""
        flagged = ~self.torch.isfinite(greatest)
        counts = self.torch.where(counts == UNCOUNTED, flagged.long(), counts)
        first = int(flagged.nonzero()[0])
        return {"nonfinite": int(counts.sum()), "first_nonfinite": self.parameters.names[int(indices[first])]}

    def _scope(self) -> str:
        return "shard" if all(piece.is_local for piece in self.pieces) else "global"

    def _layers(self, latest: Any, scale: float) -> list[dict[str, Any]]:
        squares: dict[str, float] = {}
        for layer, norm in zip(self.parameters.layers, latest.tolist()):
            if not norm < 0:
                squares[layer] = squares.get(layer, 0.0) + norm * norm
        return [
            {"time": self.time, "step": self.number, "name": "grad_norm", "layer": layer, "value": number_of(norm)}
            for layer, norm in ((layer, square**0.5 / scale) for layer, square in list(squares.items())[:METRICS_MAX])
        ]
