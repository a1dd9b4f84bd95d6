"""What has happened to the ports between two looks, as events. Pure: readings and time come in.

A cable that is pulled and put back between two looks is seen by the counter of how often the link went down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from collectors.network.ports import Port, PortReading
from collectors.source import EventRow
from telemetry_bus.schemas import EventKind

ERRORS_A_MINUTE: Mapping[str, int] = {
    "symbol_error_count": 10,
    "recovery_count": 10,
    "receive_error_count": 10,
    "link_integrity_error_count": 10,
    "buffer_overrun_count": 10,
    "crc_error_count": 10,
    "remote_physical_error_count": 100,
    "transmit_discard_count": 100,
}
"""From how many in a minute on a link is said to have errors: the thresholds that InfiniBand's ``ibqueryerrors`` comes
with, which it applies to what has come together since its counters were cleared."""
MINUTE = 60.0
Key = tuple[str, str, int | None]


@dataclass(slots=True)
class _Known:
    """What was last known of a port."""

    port: Port
    up: bool | None = None
    rate: float | None = None
    best_rate: float | None = None
    down_count: int | None = None
    gone: bool = False
    slow: bool = False
    began: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By counter: when this minute began, and where the counter stood."""
    sick: set[str] = field(default_factory=set)


class LinkWatch:
    """Remembers the ports of ``node`` and says what changes."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._known: dict[Key, _Known] = {}

    def observe(self, readings: Sequence[PortReading], now: float) -> list[EventRow]:
        """The events between the last look and this one, at which ``readings`` are all the ports that there are."""
        here = {(each.port.kind, each.port.device, each.port.port): each for each in readings}
        # The link of a card that speaks both is told once, by its faster half.
        behind = {name for each in readings for name in each.port.netdevs if each.port.kind == "infiniband"}
        events: list[EventRow] = []
        for key, known in self._known.items():
            if key not in here and not known.gone:
                known.gone, known.up = True, None
                events.append(self._event(known.port, "vanished", "is gone", {}))
        for key, reading in here.items():
            if reading.port.kind != "ethernet" or reading.port.device not in behind:
                events += self._compared(self._known.get(key), reading, now)
            if key not in self._known:
                self._known[key] = _first(reading, now)
        return events

    def _compared(self, known: _Known | None, new: PortReading, now: float) -> list[EventRow]:
        if known is None:
            fell = new.values.get("down_count", 0)
            if new.up is False and new.wanted and fell:
                detail = {"times": fell, "since": "before the first look"}
                return [self._event(new.port, "down", "is down", detail)]
            return []
        events = [*self._came_back(known, new), *self._link(known, new), *self._rate(known, new)]
        events += self._errors(known, new, now)
        known.port = new.port
        known.up = known.up if new.up is None else new.up
        known.down_count = new.values.get("down_count", known.down_count)
        return events

    def _came_back(self, known: _Known, new: PortReading) -> list[EventRow]:
        if not known.gone:
            return []
        known.gone = False
        known.began.clear()
        return [self._event(new.port, "back", "is there again", {"up": new.up})]

    def _link(self, known: _Known, new: PortReading) -> list[EventRow]:
        fell = _growth(known.down_count, new.values.get("down_count"))
        if known.up and new.up is False:
            state = ("down", "went down") if new.wanted else ("switched_off", "was switched off")
            return [self._event(new.port, *state, {"times": max(fell, 1)})]
        if known.up is False and new.up:
            return [self._event(new.port, "up", "is up again", {"times": fell, "rate_gigabits_per_second": new.rate})]
        if known.up and new.up and fell:
            words = f"went down and came back {fell} times" if fell > 1 else "went down and came back"
            return [self._event(new.port, "flapped", words, {"times": fell})]
        return []

    def _rate(self, known: _Known, new: PortReading) -> list[EventRow]:
        if new.rate is None:
            return []
        best = known.best_rate = max(new.rate, known.best_rate or 0.0)
        was_slow, known.slow = known.slow, new.rate < best
        before, known.rate = known.rate, new.rate
        detail = {"rate_gigabits_per_second": new.rate, "before": before, "best": best}
        if known.slow and (not was_slow or new.rate != before):
            return [self._event(new.port, "rate_degraded", f"runs at {new.rate:g} instead of {best:g} Gbit/s", detail)]
        if was_slow and not known.slow:
            return [self._event(new.port, "rate_restored", f"runs at {new.rate:g} Gbit/s again", detail)]
        return []

    def _errors(self, known: _Known, new: PortReading, now: float) -> list[EventRow]:
        events = []
        for metric, most in ERRORS_A_MINUTE.items():
            if (number := new.values.get(metric)) is None:
                continue
            began, base = known.began.setdefault(metric, (now, number))
            grown = _growth(base, number)
            if grown >= most and metric not in known.sick:
                known.sick.add(metric)
                detail = {"metric": metric, "grown": grown, "seconds": round(now - began, 3), "total": number}
                events.append(self._event(new.port, "errors", f"has errors: {metric} grew by {grown}", detail))
            if now - began >= MINUTE or number < base:
                known.began[metric] = (now, number)
                if grown < most:
                    known.sick.discard(metric)
        return events

    def _event(self, port: Port, state: str, words: str, detail: Mapping[str, Any]) -> EventRow:
        place = {"kind": port.kind, "device": port.device, "port": port.port, "netdevs": list(port.netdevs)}
        message = f"{self._node}: {port.name} {words}"
        return EventRow(EventKind.LINK, self._node, message, False, detail={"state": state, **place, **detail})


def _first(reading: PortReading, now: float) -> _Known:
    began = {metric: (now, reading.values[metric]) for metric in ERRORS_A_MINUTE if metric in reading.values}
    fell = reading.values.get("down_count")
    return _Known(reading.port, reading.up, reading.rate, reading.rate, fell, began=began)


def _growth(before: int | None, now: int | None) -> int:
    """By how much a counter has grown. One that fell began anew, with a driver that was loaded again."""
    if before is None or now is None:
        return 0
    return now - before if now >= before else now
