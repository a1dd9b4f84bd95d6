"""How a group of signals says what is to be read, how often, and from where.

Several signals may give one metric: the first that has a value wins, the later ones are for cards and drivers that do
not have the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from collectors.cost_class import CostClass
from collectors.nvml.driver import Device
from collectors.nvml.driver_fields import ALL_LINKS, FieldKey, field_name


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the driver that gives ``metrics``, in order; ``None`` for what this driver's version leaves out.

    ``source`` is its name, for the documentation.
    """

    metrics: tuple[str, ...]
    read: Callable[[Device], tuple[float | int | None, ...]]
    cost: CostClass
    source: str


@dataclass(frozen=True, slots=True)
class Field:
    """The sum of some fields of the one batched call, nearly always of a single one.

    It gives ``metric`` after division by ``divisor`` or through ``decode``. ``whole`` says that the metric's column
    holds integers. If one of several fields cannot be read, the sum cannot.
    """

    metric: str
    keys: tuple[FieldKey, ...]
    cost: CostClass
    divisor: float | None = None
    whole: bool = False
    decode: Callable[[float | int], float] | None = None

    @property
    def source(self) -> str:
        """The names of the fields."""
        return " + ".join(_name(key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Profiled:
    """A metric of GPM (Hopper and later), times ``factor``: percent to ratio, MiB to bytes."""

    metric: str
    metric_id: int
    cost: CostClass
    factor: float = 0.01

    @property
    def source(self) -> str:
        """Its number."""
        return f"GPM metric {self.metric_id}"


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate of a counting field, whose unit is ``unit_bytes``. Read only where GPM does not give ``metric``.

    ``bytes_per_second_max`` is what the link can carry: what is faster is a counter that was set back.
    """

    metric: str
    key: FieldKey
    cost: CostClass
    unit_bytes: int
    bytes_per_second_max: float

    @property
    def source(self) -> str:
        """The name of the field."""
        return f"rate of {_name(self.key)}"


@dataclass(frozen=True, slots=True)
class OverLinks:
    """The sum of a field over the links of a GPU, which are counted by the field ``links``.

    With ``states`` it is the number of links whose field is not 0.
    """

    metric: str
    links: int
    field_id: int
    factor: int = 1
    states: bool = False
    whole: bool = False
    cost: CostClass = CostClass.RARE

    @property
    def source(self) -> str:
        """The name of the field."""
        return f"{'links whose' if self.states else 'sum over links of'} {_name((self.field_id, 0))}" + (
            " is not 0" if self.states else ""
        )


@dataclass(frozen=True, slots=True)
class OfLink:
    """A field of one link, times ``factor``, in the row of that link. With ``state`` it is 1 if the field is not 0."""

    metric: str
    field_id: int
    factor: float = 1
    state: bool = False

    @property
    def source(self) -> str:
        """The name of the field."""
        return f"{_name((self.field_id, 0))} of each link"


Signal = Call | Field | Profiled | Rate | OverLinks


def one(metric: str, read: Callable[[Device], float | int], cost: CostClass, source: str) -> Call:
    """A call that gives one metric."""
    return Call((metric,), lambda device: (read(device),), cost, source)


def gauge(metric: str, field_id: int, cost: CostClass, divisor: float | None = None) -> Field:
    """A field that gives a measured value."""
    return Field(metric, ((field_id, 0),), cost, divisor)


def count(metric: str, *field_ids: int, cost: CostClass, scope: int = 0) -> Field:
    """A field, or the sum of several, that counts."""
    return Field(metric, tuple((field_id, scope) for field_id in field_ids), cost, whole=True)


def seconds(metric: str, field_id: int, cost: CostClass) -> Field:
    """A field that counts nanoseconds."""
    return Field(metric, ((field_id, 0),), cost, divisor=1e9)


def _name(key: FieldKey) -> str:
    field_id, scope = key
    return f"field {field_id} {field_name(field_id)}{' of all links' if scope == ALL_LINKS else ''}"
