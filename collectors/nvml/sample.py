"""What one GPU, or one MIG instance, gave in one reading."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from collectors.errors import FieldFailure

Number = float | int


@dataclass(frozen=True, slots=True)
class LinkSample:
    """One NVLink of a GPU: values by name of ``link/1``."""

    port: int
    values: Mapping[str, Number]


@dataclass(slots=True)
class Sample:
    """Values by metric, and the reason for each metric that has none.

    ``instance`` and ``uuid`` are those of a MIG instance, ``None`` for the GPU itself. ``links`` are its NVLinks,
    where they were read. ``pids`` are the processes that use it, ``None`` where they were not read or are not given. A
    failure of ``*`` is one of the whole reading.
    """

    instance: str | None = None
    uuid: str | None = None
    values: dict[str, Number] = field(default_factory=dict)
    failures: dict[str, FieldFailure] = field(default_factory=dict)
    links: list[LinkSample] = field(default_factory=list)
    pids: list[int] | None = None

    @property
    def lost(self) -> bool:
        """Whether the GPU does not answer any more."""
        return FieldFailure.GPU_LOST in self.failures.values()

    def give(self, metric: str, value: Number) -> None:
        """It has a value. Whatever failed before was another source of it."""
        self.values[metric] = value
        if self.failures:
            self.failures.pop(metric, None)

    def refuse(self, metric: str, reason: FieldFailure) -> None:
        """One source has failed. Of several reasons the one is kept that says more than "not supported"."""
        if metric not in self.values and self.failures.get(metric) in {None, FieldFailure.UNSUPPORTED}:
            self.failures[metric] = reason
