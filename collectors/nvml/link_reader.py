"""What is counted link by link: sums over the NVLinks and the C2C links of a GPU, and a row for each NVLink."""

from collections.abc import Mapping, Sequence

from collectors.errors import FieldFailure
from collectors.nvml.driver import INT64_MAX, DriverFault
from collectors.nvml.driver_fields import FieldAnswer, FieldKey
from collectors.nvml.field_reader import FieldReader, FieldSet
from collectors.nvml.sample import Sample
from collectors.nvml.signals import OverLinks

LINKS_MAX = 72
"""As many as GPM has numbers for. Eighteen are what a GPU has today."""


class LinkReader:
    """Reads the links of one GPU through ``fields``, in one call."""

    def __init__(self, fields: FieldReader) -> None:
        self._fields = fields
        self._counts: tuple[int, ...] = ()
        self._set = FieldSet(())

    def read(
        self, made: Sample, signals: Sequence[OverLinks], found: Mapping[FieldKey, FieldAnswer], now: float
    ) -> None:
        """Add the sums to ``made``. ``found`` says how many links there are."""
        counts = {signal.links: _count(found.get((signal.links, 0))) for signal in signals}
        if tuple(counts.values()) != self._counts:
            self._counts = tuple(counts.values())
            self._set = FieldSet((s.field_id, link) for s in signals for link in range(counts[s.links]))
        answers = self._fields.read(self._set, now)
        for signal in signals:
            if (links := counts[signal.links]) == 0:
                if isinstance(fault := found.get((signal.links, 0)), DriverFault):
                    made.refuse(signal.metric, fault.reason)
                continue
            _sum(made, signal, [answers[signal.field_id, link] for link in range(links)])


def _count(answer: FieldAnswer | None) -> int:
    return min(int(answer), LINKS_MAX) if isinstance(answer, int) and answer > 0 else 0


def _sum(made: Sample, signal: OverLinks, answers: Sequence[FieldAnswer]) -> None:
    if signal.metric in made.values:
        return
    total: float | int = 0
    for answer in answers:
        if isinstance(answer, DriverFault):
            made.refuse(signal.metric, answer.reason)
            return
        total += bool(answer) if signal.states else answer
    if signal.whole and not (isinstance(total, int) and total <= INT64_MAX):
        made.refuse(signal.metric, FieldFailure.DRIVER_ERROR)
    else:
        made.give(signal.metric, total * signal.factor)
