"""The arithmetic of the simulated fleet: fitted parameters, the state of all GPUs, and one step of it.

Arrays over the whole fleet have the shape ``(nodes, GPUs a node)`` or ``(nodes, GPUs a node, signals)``; there is no
loop over GPUs or nodes, only over the few regimes (a phase of a workload). ``scripts/fit_simulation.py`` says what the
model is and fits it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

POWER_CAP, IDLE = 0x4, 0x1
"""Clocks-event reasons that occur in the recordings: software power cap, and idle."""


@dataclass(frozen=True, slots=True)
class Wander:
    """AR(1) of correlated signals: ``phi`` (signals,) at 1 s, and ``mix`` of the innovations (signals, signals)."""

    phi: Array
    mix: Array

    @classmethod
    def of(cls, fitted: dict[str, Any]) -> "Wander":
        """From the parameter file: ``mix`` is the root of the innovations' correlation, less what rounding broke."""
        values, vectors = np.linalg.eigh(np.array(fitted["innovations"]))
        mix = vectors * np.sqrt(np.maximum(values, 0.0))
        return cls(np.array(fitted["autocorrelation"]), mix.astype(np.float32))

    def step(self, state: Array, noise: Array, seconds: float) -> Array:
        """``state`` after ``seconds``; ``noise`` is standard normal of the same shape (..., signals)."""
        keep = self.phi**seconds
        kick = np.sqrt(1.0 - keep**2)
        return np.asarray(keep.astype(np.float32) * state + kick.astype(np.float32) * (noise @ self.mix.T))


@dataclass(frozen=True, slots=True)
class Regime:
    """One phase of one workload.

    ``quantiles`` has shape (signals, positions), ``weights`` (3, signals): of the node, of what is peculiar to
    a GPU, and of its own. A GPU is at its power cap, or idle, where the latent power or utilisation is beyond a bound.
    """

    quantiles: Array
    weights: Array
    node: Wander
    own: Wander
    power_cap_above: float
    idle_below: float

    @classmethod
    def of(cls, fitted: dict[str, Any]) -> "Regime":
        """From the parameter file."""
        return cls(
            np.array(fitted["quantiles"], dtype=np.float32),
            np.sqrt(np.array(fitted["shares"])).astype(np.float32),
            Wander.of(fitted["node"]),
            Wander.of(fitted["own"]),
            normal_quantile(1.0 - fitted["power_cap_share"]),
            normal_quantile(fitted["idle_share"]),
        )

    def values(self, latent: Array, first_position: float, step: float) -> Array:
        """Signals for standard-normal ``latent`` (..., signals): straight lines between the fitted quantiles."""
        last = self.quantiles.shape[1] - 1
        at = np.clip((latent - first_position) / step, 0.0, last)
        low = np.minimum(at.astype(np.intp), last - 1)
        flat = self.quantiles.ravel()
        cell = low + np.arange(self.quantiles.shape[0]) * self.quantiles.shape[1]
        part = (at - low).astype(np.float32)
        return np.asarray(flat[cell] * (1 - part) + flat[cell + 1] * part)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was fitted. ``workloads`` maps a workload to (seconds of warm-up, warm-up, steady)."""

    gpu_name: str
    memory_total_mib: float
    signals: tuple[str, ...]
    first_position: float
    position_step: float
    thermal: dict[str, float]
    idle: Regime
    workloads: dict[str, tuple[float, Regime, Regime]]


@cache
def parameters() -> Parameters:
    """The committed parameters, ``collectors/simulated_h100.json``."""
    raw = json.loads(files("collectors").joinpath("simulated_h100.json").read_text())
    positions = raw["normal_positions"]
    return Parameters(
        gpu_name=raw["gpu_name"],
        memory_total_mib=raw["memory_total_mib"],
        signals=tuple(raw["signals"]),
        first_position=positions[0],
        position_step=positions[1] - positions[0],
        thermal=raw["thermal"],
        idle=Regime.of(raw["idle"]),
        workloads={
            name: (float(phases["warmup"]["seconds"]), Regime.of(phases["warmup"]), Regime.of(phases["steady"]))
            for name, phases in raw["workloads"].items()
        },
    )


def normal_quantile(probability: float) -> float:
    """The standard normal's quantile, infinite at 0 and 1."""
    if 0.0 < probability < 1.0:
        return NormalDist().inv_cdf(probability)
    return -np.inf if probability <= 0.0 else np.inf


# Read here and not when a fleet is made: that may be inside an event loop, which must not wait for a file.
parameters()


class FleetState:
    """The state of all GPUs between two ticks."""

    def __init__(
        self, fitted: Parameters, regimes: Sequence[Regime], shape: tuple[int, int], rng: np.random.Generator
    ) -> None:
        self._fitted, self._regimes, self._rng = fitted, regimes, rng
        count = len(fitted.signals)
        self._node = self._noise(shape[0], count)
        self._peculiar = self._noise(*shape, count)
        self._own = self._noise(*shape, count)
        thermal = fitted.thermal
        self._ambient = thermal["ambient_celsius"] + thermal["ambient_deviation_celsius"] * self._noise(*shape)
        self._die: Array | None = None
        self._sink: Array | None = None
        self.energy_joules = rng.uniform(0.0, 1e9, shape)
        """The recorded nodes had used 0.2 to 1.6 GJ since their drivers were loaded."""

    def signals(self, regime_of_node: Array, seconds: float) -> tuple[dict[str, Array], Array]:
        """All signals, by metric name, and the clocks-event reasons, ``seconds`` after the last call."""
        node_noise, own_noise = self._noise(*self._node.shape), self._noise(*self._own.shape)
        made = np.empty_like(self._own)
        reasons = np.zeros(self._own.shape[:2], dtype=np.int64)
        power, utilization = (self._fitted.signals.index(n) for n in ("power_watts", "gpu_utilization_percent"))
        for index in np.unique(regime_of_node):
            regime, at = self._regimes[index], np.flatnonzero(regime_of_node == index)
            self._node[at] = regime.node.step(self._node[at], node_noise[at], seconds)
            self._own[at] = regime.own.step(self._own[at], own_noise[at], seconds)
            shared, peculiar, own = regime.weights
            latent = shared * self._node[at, None, :] + peculiar * self._peculiar[at] + own * self._own[at]
            made[at] = regime.values(latent, self._fitted.first_position, self._fitted.position_step)
            capped = latent[:, :, power] >= regime.power_cap_above
            idle = latent[:, :, utilization] <= regime.idle_below
            reasons[at] = np.where(capped, POWER_CAP, 0) | np.where(idle, IDLE, 0)
        by_name = {name: np.ascontiguousarray(made[:, :, index]) for index, name in enumerate(self._fitted.signals)}
        return by_name, reasons

    def heat(self, power_watts: Array, seconds: float) -> Array:
        """Temperature in Celsius after ``seconds`` at ``power_watts``; the energy is added up on the way."""
        thermal = self._fitted.thermal
        self._die = _lag(self._die, power_watts, seconds / thermal["fast_seconds"])
        self._sink = _lag(self._sink, power_watts, seconds / thermal["slow_seconds"])
        self.energy_joules = self.energy_joules + power_watts.astype(np.float64) * seconds
        rise = thermal["fast_celsius_per_watt"] * self._die + thermal["slow_celsius_per_watt"] * self._sink
        return np.asarray(self._ambient + rise, dtype=np.float32)

    def _noise(self, *shape: int) -> Array:
        return self._rng.standard_normal(shape, dtype=np.float32)


def _lag(state: Array | None, target: Array, constants: float) -> Array:
    """A first-order lag after ``constants`` time constants; at the very start it has settled."""
    if state is None:
        return target.copy()
    keep = np.float32(np.exp(-constants))
    return np.asarray(keep * state + (1 - keep) * target)
