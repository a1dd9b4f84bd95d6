"""What is counted link by link: sums over the NVLinks and the C2C links of a GPU, and a row for each NVLink."""

from collections.abc import Mapping, Sequence

from collectors.errors import FieldFailure
from collectors.nvml.driver import INT64_MAX, DriverFault
from collectors.nvml.driver_fields import FieldAnswer, FieldKey
from collectors.nvml.field_reader import FieldReader, FieldSet
from collectors.nvml.nvlink import LINK_SIGNALS, LINK_WHOLE, NVLINKS
from collectors.nvml.sample import LinkSample, Number, Sample
from collectors.nvml.signals import OfLink, OverLinks

LINKS_MAX = 72
"""As many as GPM has numbers for. Eighteen are what a GPU has today."""

Answers = Mapping[FieldKey, FieldAnswer]


class LinkReader:
    """Reads the links of one GPU through ``fields``, in one call."""

    def __init__(self, fields: FieldReader) -> None:
        self._fields = fields
        self._counts: dict[int, int] = {}
        self._set = FieldSet(())

    def read(self, made: Sample, signals: Sequence[OverLinks], found: Answers, now: float) -> None:
        """Add the sums and the rows to ``made``. ``found`` says how many links there are."""
        counts = {signal.links: _count(found.get((signal.links, 0))) for signal in signals}
        if counts != self._counts:
            self._counts = counts
            self._set = FieldSet(_keys(signals, counts))
        if made.lost:
            return
        answers = self._fields.read(self._set, now)
        for signal in signals:
            if links := counts[signal.links]:
                _sum(made, signal, [answers[signal.field_id, link] for link in range(links)])
            elif isinstance(fault := found.get((signal.links, 0)), DriverFault):
                made.refuse(signal.metric, fault.reason)
        made.links = [_row(made, link, answers) for link in range(counts.get(NVLINKS, 0))]


def _keys(signals: Sequence[OverLinks], counts: Mapping[int, int]) -> list[FieldKey]:
    sums = [(signal.field_id, link) for signal in signals for link in range(counts[signal.links])]
    rows = [(signal.field_id, link) for signal in LINK_SIGNALS for link in range(counts.get(NVLINKS, 0))]
    return sums + rows


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
    if signal.whole and not _fits(total):
        made.refuse(signal.metric, FieldFailure.DRIVER_ERROR)
    else:
        made.give(signal.metric, total * signal.factor)


def _row(made: Sample, link: int, answers: Answers) -> LinkSample:
    values: dict[str, Number] = {}
    refused: dict[str, FieldFailure] = {}
    for signal in LINK_SIGNALS:
        if signal.metric not in values:
            value = _of_link(signal, answers[signal.field_id, link])
            if isinstance(value, FieldFailure):
                refused[signal.metric] = value
            else:
                values[signal.metric] = value
    for metric, reason in refused.items():
        if metric not in values:
            made.refuse(metric, reason)
    return LinkSample(link, values)


def _of_link(signal: OfLink, answer: FieldAnswer) -> Number | FieldFailure:
    if isinstance(answer, DriverFault):
        return answer.reason
    if signal.state:
        return float(answer != 0)
    if signal.metric not in LINK_WHOLE:
        return answer * signal.factor
    value = answer * int(signal.factor)
    return value if _fits(value) else FieldFailure.DRIVER_ERROR


def _fits(value: Number) -> bool:
    return isinstance(value, int) and 0 <= value <= INT64_MAX
