"""Fit the simulated fleet to recordings of real H100 nodes: ``python scripts/fit_simulation.py FOLDER``.

Reads every ``*_telemetry.csv.gz`` of FOLDER (8 GPUs of one node at 10 Hz: a unix time, a phase, a GPU index and the
signals) and writes ``collectors/simulated_h100.json``: fitted numbers only, no row of any recording.

The model, once a second and for each phase of each recording:

- every signal has a marginal distribution, kept as quantiles at fixed standard-normal positions;
- the standard-normal value behind a signal is the sum of what the node shares, what is peculiar to a GPU for ever, and
  what a GPU does by itself; their variances add up to one. The first and the last wander as AR(1) and are correlated
  across signals;
- temperature follows power through a fast (die) and a slow (heat sink) first-order lag; energy is the sum of power.
"""

import argparse
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow.csv

Array = np.ndarray[Any, np.dtype[np.float64]]

TARGET = Path(__file__).resolve().parent.parent / "collectors" / "simulated_h100.json"
# Metric of gpu/1: (column of the recording, whether NVML at 1 Hz gives the second's mean rather than an instant).
SIGNALS = {
    "power_watts": ("power_w", True),
    "gpu_utilization_percent": ("gpu_util_pct", False),
    "memory_copy_utilization_percent": ("mem_util_pct", False),
    "memory_used_mib": ("mem_used_mib", False),
    "sm_active_ratio": ("sm_active", True),
    "tensor_active_ratio": ("tensor_active", True),
    "dram_active_ratio": ("dram_active", True),
    "fp16_active_ratio": ("fp16_active", True),
    "pcie_tx_bytes_per_second": ("pcie_tx_bytes_s", True),
    "pcie_rx_bytes_per_second": ("pcie_rx_bytes_s", True),
    "nvlink_tx_bytes_per_second": ("nvlink_tx_bytes_s", True),
    "nvlink_rx_bytes_per_second": ("nvlink_rx_bytes_s", True),
}
RECORDED_BY = "github.com/atharvanihalani/gpu-telemetry-exploration"
NORMAL_POSITIONS = [-3.0 + 0.5 * index for index in range(13)]
PHASES = ("warmup", "steady")
PHASE_SECONDS_MIN = 10
"""A phase of fewer whole seconds says nothing about how it wanders."""
POWER_CAP, IDLE = 0x4, 0x1
"""Bits of the clocks-event reasons that occur in the recordings."""
EMPTY_MEMORY_MIB = 50
"""A GPU without a process shows up to some tens of MiB."""
AUTOCORRELATION_MAX = 0.995
"""A memory of 200 s: five minutes of a recording cannot show a longer one."""


def main() -> None:
    """Fit, and write the parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with *_telemetry.csv.gz")
    parser.add_argument("--source", default=RECORDED_BY, help="where they are from")
    parser.add_argument("--date", required=True, help="the day of the fit, written into the file")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*_telemetry.csv.gz"))
    if not files:
        parser.error(f"no *_telemetry.csv.gz in {arguments.folder}")
    recordings = {file.name.removesuffix("_telemetry.csv.gz"): seconds_of(file) for file in files}
    provenance = {
        "what": "parameters fitted to recordings of 8 x NVIDIA H100 80GB HBM3 at 10 Hz; no row of a recording is here",
        "from": arguments.source,
        "recordings": [file.name for file in files],
        "fitted": arguments.date,
        "by": "scripts/fit_simulation.py",
    }
    TARGET.write_text(json.dumps(fit(recordings, provenance), separators=(",", ":")).replace('],"', '],\n"') + "\n")
    print(f"{TARGET}: {TARGET.stat().st_size} bytes from {len(files)} recordings")


def fit(recordings: dict[str, dict[str, Any]], provenance: dict[str, Any]) -> dict[str, Any]:
    """All parameters. ``recordings`` maps a name to what :func:`seconds_of` gave."""
    workloads = {}
    for name, recording in recordings.items():
        phases = {phase: recording["phase"] == phase for phase in PHASES}
        long = {phase: rows for phase, rows in phases.items() if rows.sum() >= PHASE_SECONDS_MIN}
        workloads[name] = {phase: fit_phase(recording, rows) for phase, rows in long.items()}
    quiet = max(recordings.values(), key=lambda recording: int(_empty(recording).sum()))
    return {
        "provenance": provenance,
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "memory_total_mib": float(np.median([np.median(r["mem_total_mib"]) for r in recordings.values()])),
        "signals": list(SIGNALS),
        "normal_positions": NORMAL_POSITIONS,
        "thermal": fit_thermal(list(recordings.values())),
        "idle": fit_phase(quiet, _empty(quiet)),
        "workloads": workloads,
    }


def _empty(recording: dict[str, Any]) -> Any:
    """The seconds in which no GPU of the node holds anything: nobody's job is there."""
    return (recording["mem_used_mib"] < EMPTY_MEMORY_MIB).all(axis=1)


def seconds_of(file: Path) -> dict[str, Any]:
    """A recording at 1 Hz: arrays of shape (seconds, 8), and ``phase`` of shape (seconds,)."""
    table = pyarrow.csv.read_csv(file)
    column = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    second = np.floor(column["timestamp"] - column["timestamp"][0]).astype(int)
    seconds, gpus = int(second.max()) + 1, int(column["gpu"].max()) + 1
    at = second * gpus + column["gpu"].astype(int)
    full = np.bincount(at, minlength=seconds * gpus).reshape(seconds, gpus).min(axis=1) > 0
    names = {*(name for name, _ in SIGNALS.values()), "temp_c", "mem_total_mib", "throttle_reasons"}
    means = {name for name, mean in SIGNALS.values() if mean}
    made: dict[str, Any] = {}
    for name in names:
        pick = _mean_by_cell if name in means else _last_by_cell
        made[name] = pick(at, column[name].astype(float), seconds * gpus).reshape(seconds, gpus)[full]
    first_row = np.searchsorted(second, np.flatnonzero(full))
    return made | {"phase": column["phase"][first_row]}


def _mean_by_cell(at: Any, values: Array, cells: int) -> Array:
    good = np.isfinite(values)
    total = np.bincount(at[good], values[good], cells)
    count = np.bincount(at[good], minlength=cells)
    mean: Array = np.divide(total, count, out=np.full(cells, np.nan), where=count > 0)
    return mean


def _last_by_cell(at: Any, values: Array, cells: int) -> Array:
    made = np.full(cells, np.nan)
    made[at] = values
    return made


def fit_phase(recording: dict[str, Any], rows: Any) -> dict[str, Any]:
    """One phase of one recording: the parameters that ``collectors/simulated.py`` reads as a regime."""
    raw = np.stack([recording[column][rows] for column, _ in SIGNALS.values()], axis=-1)
    raw = raw[np.isfinite(raw).all(axis=(1, 2))]
    latent = np.stack([_normal_scores(raw[:, :, s]) for s in range(raw.shape[2])], axis=-1)
    peculiar = latent.mean(axis=0)
    node = (latent - peculiar).mean(axis=1)
    own = latent - peculiar - node[:, None, :]
    gpus = raw.shape[1]
    own_variance = own.var(axis=(0, 1)) * gpus / (gpus - 1)
    node_variance = np.maximum(node.var(axis=0) - own_variance / gpus, 0.0)
    variances = np.stack([node_variance, peculiar.var(axis=0), own_variance])
    total = variances.sum(axis=0)
    shares = np.where(total > 0, variances / np.where(total > 0, total, 1.0), np.array([[0.0], [0.0], [1.0]]))
    reasons = recording["throttle_reasons"][rows].astype(int)
    levels = [NormalDist().cdf(z) for z in NORMAL_POSITIONS]
    return {
        "seconds": int(rows.sum()),
        "quantiles": _rounded(np.quantile(raw.reshape(-1, raw.shape[2]), levels, axis=0).T, 5),
        "shares": _rounded(shares, 3),
        "node": _wander(node[:, None, :]),
        "own": _wander(own),
        "power_cap_share": round(float((reasons & POWER_CAP > 0).mean()), 4),
        "idle_share": round(float((reasons & IDLE > 0).mean()), 4),
    }


def _normal_scores(values: Array) -> Array:
    """Values as standard-normal scores of their ranks; equal values share the mean of their ranks."""
    flat = values.ravel()
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2.0
    scores = np.array([NormalDist().inv_cdf(p) for p in middle / flat.size])
    return np.asarray(scores[inverse.ravel()].reshape(values.shape))


def _wander(latent: Array) -> dict[str, Any]:
    """AR(1) per signal at 1 s, and the correlation of the innovations that gives the correlation that was seen.

    ``latent`` has shape (seconds, series, signals).
    """
    centred = latent - latent.mean(axis=0)
    variance = (centred**2).mean(axis=(0, 1))
    alive = variance > 1e-12
    lagged = (centred[1:] * centred[:-1]).mean(axis=(0, 1))
    phi = np.clip(np.where(alive, lagged / np.where(alive, variance, 1.0), 0.0), 0.0, AUTOCORRELATION_MAX)
    scaled = centred / np.sqrt(np.where(alive, variance, 1.0))
    seen = np.einsum("tgi,tgj->ij", scaled, scaled) / (scaled.shape[0] * scaled.shape[1])
    root = np.sqrt(1.0 - phi**2)
    innovations = seen * (1.0 - np.outer(phi, phi)) / np.outer(root, root)
    innovations[~alive, :] = innovations[:, ~alive] = 0.0
    np.fill_diagonal(innovations, 1.0)
    return {"autocorrelation": _rounded(phi, 4), "innovations": _rounded(_as_correlation(innovations), 3)}


def _as_correlation(matrix: Array) -> Array:
    """The nearest proper correlation matrix: negative eigenvalues become zero, the diagonal one again."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    positive = (vectors * np.maximum(values, 1e-6)) @ vectors.T
    scale = np.sqrt(np.diag(positive))
    return np.asarray(positive / np.outer(scale, scale))


def fit_thermal(recordings: list[dict[str, Any]]) -> dict[str, float]:
    """Temperature as ambient (of a GPU's place) + fast and slow lag of power, least squares over all recordings."""
    best: tuple[float, dict[str, float]] = (np.inf, {})
    for fast in (1.0, 2.0, 3.0, 5.0, 8.0):
        for slow in (20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0):
            error, found = _thermal_at(recordings, fast, slow)
            if error < best[0]:
                best = error, found
    return best[1]


def _thermal_at(recordings: list[dict[str, Any]], fast: float, slow: float) -> tuple[float, dict[str, float]]:
    inputs, outputs = [], []
    for recording in recordings:
        power, temperature = recording["power_w"], recording["temp_c"]
        lags = np.stack([_lag(power, fast), _lag(power, slow)], axis=-1)
        good = np.isfinite(lags).all(axis=(1, 2)) & np.isfinite(temperature).all(axis=1)
        inputs.append(lags[good])
        outputs.append(temperature[good])
    centred = np.concatenate([(x - x.mean(axis=0)).reshape(-1, 2) for x in inputs])
    wanted = np.concatenate([(y - y.mean(axis=0)).ravel() for y in outputs])
    slopes, *_ = np.linalg.lstsq(centred, wanted, rcond=None)
    error = float(np.sqrt(((wanted - centred @ slopes) ** 2).mean()))
    ambient = np.stack([y.mean(axis=0) - x.mean(axis=0) @ slopes for x, y in zip(inputs, outputs, strict=True)])
    found = {
        "fast_seconds": fast,
        "slow_seconds": slow,
        "fast_celsius_per_watt": round(float(slopes[0]), 6),
        "slow_celsius_per_watt": round(float(slopes[1]), 6),
        "ambient_celsius": round(float(ambient.mean()), 3),
        "ambient_deviation_celsius": round(float(ambient.std()), 3),
        "residual_celsius": round(error, 3),
    }
    return error, found


def _lag(power: Array, seconds: float) -> Array:
    keep = np.exp(-1.0 / seconds)
    state = np.nan_to_num(power[0], nan=float(np.nanmean(power)))
    made = np.empty_like(power)
    for row, watts in enumerate(power):
        state = np.where(np.isfinite(watts), keep * state + (1.0 - keep) * watts, state)
        made[row] = state
    return made


def _rounded(values: Array, digits: int) -> Any:
    """Nested lists with ``digits`` significant digits."""

    def short(text: str) -> float:
        return float(f"{float(text):.{digits}g}")

    return json.loads(json.dumps(np.asarray(values).tolist()), parse_float=short)


if __name__ == "__main__":
    main()
