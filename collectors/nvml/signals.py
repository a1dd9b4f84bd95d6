"""How a group of signals says what is to be read: calls, and fields of the one batched call."""

from collections.abc import Callable
from dataclasses import dataclass

from collectors.nvml.driver import Device


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the driver that gives ``metrics``, in order."""

    metrics: tuple[str, ...]
    read: Callable[[Device], tuple[float | int, ...]]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of ``nvmlDeviceGetFieldValues`` that gives ``metric`` after division by ``divisor``."""

    metric: str
    field_id: int
    divisor: float | None = None


Signal = Call | Field


def one(metric: str, read: Callable[[Device], float | int]) -> Call:
    """A call that gives one metric."""
    return Call((metric,), lambda device: (read(device),))
