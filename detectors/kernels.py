"""Arithmetic on whole frames: arrays in, arrays out."""

import numpy as np

from telemetry_bus.frames import Array

LINEAR_BELOW = 1e-3
"""Losses far above this are judged by their ratio, around and below it by their difference: a logarithm that is defined
for zero and for negative losses, and for which a classifier's loss of 1e-7 is not far from one of 1e-4."""


LARGEST = 1e300
"""Losses beyond it are as good as this: their scale must not overflow."""


def log_like(loss: Array) -> Array:
    """Losses on a scale on which equal ratios are equal distances (and differences, near zero)."""
    return np.arcsinh(np.clip(loss, -LARGEST, LARGEST) / LINEAR_BELOW)


def from_log_like(value: float) -> float:
    """The loss that :func:`log_like` maps to ``value``; infinite beyond the floats."""
    with np.errstate(over="ignore"):
        return float(np.sinh(value) * LINEAR_BELOW)


def robust_levels(windows: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Centre (median), upper deviation and largest of each window, ``windows`` of shape ``(series, size)``.

    Only the first ``counts`` entries of a window (at least 1) are valid, the others must be NaN. The deviation is what
    a normal distribution with the same distance from the median to the 90th percentile would have: it looks at the
    side on which a spike lies, and a heavy tail there widens it.
    """
    ordered = np.sort(windows, axis=1)  # NaN goes last
    rows = np.arange(len(counts))
    centre = ordered[rows, (counts - 1) // 2]
    upper = ordered[rows, (9 * (counts - 1)) // 10]
    return centre, (upper - centre) / 1.2816, ordered[rows, counts - 1]


def ones(bits: Array) -> Array:
    """How many bits are set in each 64-bit history."""
    return np.bitwise_count(bits)
