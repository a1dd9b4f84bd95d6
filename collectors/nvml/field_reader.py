"""All fields of one GPU that are due, in one call, without those that it has refused for good."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from collectors.nvml.driver import Device, DriverFault
from collectors.nvml.driver_fields import FieldAnswer, FieldBatch, FieldKey
from collectors.nvml.refusals import Refusals


class FieldSet:
    """Some fields that are read together. It is told from others by being itself: comparing keys would cost more."""

    def __init__(self, keys: Iterable[FieldKey]) -> None:
        self.keys = tuple(dict.fromkeys(keys))


@dataclass(slots=True)
class _Prepared:
    batch: FieldBatch | None
    refused: dict[FieldKey, FieldAnswer]
    version: int
    until: float
    all_given: bool = False


class FieldReader:
    """Reads sets of fields of ``device``. There are few sets, and each keeps its array."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._prepared: dict[FieldSet, _Prepared] = {}
        self._refusals: Refusals[FieldKey] = Refusals()

    def read(self, fields: FieldSet, now: float) -> dict[FieldKey, FieldAnswer]:
        """A value or a fault for each of ``fields``. ``now`` is monotonic."""
        prepared = self._prepared.get(fields)
        if prepared is None or prepared.version != self._refusals.version or now >= prepared.until:
            prepared = self._prepared[fields] = self._prepare(fields.keys, now)
        found = prepared.refused.copy()
        if (batch := prepared.batch) is None:
            return found
        try:
            answers, faulty = batch.read(self._device)
        except DriverFault as fault:
            self._note(dict.fromkeys(batch.keys, fault), now)
            return found | dict.fromkeys(batch.keys, fault)
        asked = dict(zip(batch.keys, answers, strict=True))
        if faulty:
            self._note(asked, now)
        elif not prepared.all_given:
            prepared.all_given = True
            self._refusals.given(batch.keys)
        return found | asked if found else asked

    def _prepare(self, keys: tuple[FieldKey, ...], now: float) -> _Prepared:
        refused: dict[FieldKey, FieldAnswer] = {}
        for key in keys:
            if (fault := self._refusals.get(key, now)) is not None:
                refused[key] = fault
        asked = [key for key in keys if key not in refused]
        until = self._refusals.until(refused, math.inf)
        return _Prepared(FieldBatch(asked) if asked else None, refused, self._refusals.version, until)

    def _note(self, answers: Mapping[FieldKey, FieldAnswer], now: float) -> None:
        self._refusals.given(key for key, answer in answers.items() if not isinstance(answer, DriverFault))
        for key, answer in answers.items():
            if isinstance(answer, DriverFault):
                self._refusals.note(key, answer, now)
