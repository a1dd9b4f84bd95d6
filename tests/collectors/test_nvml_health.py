"""What a GPU's successive readings say of its health: once for each change, nothing for counters that begin anew."""

from __future__ import annotations

from typing import Any

import pytest

from collectors.nvml.health import CORRECTED_BURST, FLAGS, GROWING, RESETS, Change, GpuHealth
from collectors.source import METRICS
from telemetry_bus.schemas import EventKind


def changes(*readings: dict[str, Any]) -> list[Change]:
    """What the last of these readings tells."""
    health = GpuHealth()
    told: list[Change] = []
    for reading in readings:
        told = health.observe(reading)
    return told


@pytest.mark.parametrize("metric", GROWING)
def test_errors_that_grow_are_told_with_before_and_after(metric: str) -> None:
    """From the least that is worth it on."""
    kind, _, least = GROWING[metric]
    (change,) = changes({metric: 5}, {metric: 5 + least})
    assert change.kind is kind
    assert change.detail == {"metric": metric, "before": 5, "after": 5 + least}
    assert not changes({metric: 5}, {metric: 5 + least - 1})


def test_what_was_there_before_the_first_reading_is_no_news_and_neither_is_what_stays() -> None:
    """A GPU carries its history with it."""
    assert not changes({"ecc_uncorrected_volatile_count": 7})
    assert not changes({"ecc_uncorrected_volatile_count": 7}, {"ecc_uncorrected_volatile_count": 7})


def test_a_value_that_was_not_read_in_between_changes_nothing() -> None:
    """Slow metrics are null in most readings."""
    (change,) = changes(
        {"row_remap_uncorrected_count": 1}, {}, {"power_watts": 5.0}, {"row_remap_uncorrected_count": 2}
    )
    assert change.kind is EventKind.ROW_REMAP


@pytest.mark.parametrize("metric", FLAGS)
def test_a_flag_is_told_when_it_is_set_and_at_the_first_reading(metric: str) -> None:
    """A row that waits for a reset is news to whoever has just begun to look."""
    assert len(changes({metric: 1})) == 1
    assert len(changes({metric: 0}, {metric: 1})) == 1
    assert not changes({metric: 1}, {metric: 1})
    assert not changes({metric: 1}, {metric: 0})


def test_the_recovery_action_is_told_in_words_when_it_changes() -> None:
    """Also when nothing is asked any more."""
    (asked,) = changes({"recovery_action": 0}, {"recovery_action": 1})
    assert (asked.kind, asked.code, asked.message) == (EventKind.RECOVERY_ACTION, 1, "the driver asks: reset the GPU")
    (over,) = changes({"recovery_action": 1}, {"recovery_action": 0})
    assert (over.code, "nothing any more" in over.message) == (0, True)
    assert not changes({"recovery_action": 0})
    (unknown,) = changes({"recovery_action": 9})
    assert "action 9" in unknown.message


def test_a_fabric_that_is_not_healthy_is_told_with_its_parts() -> None:
    """The mask says which."""
    (change,) = changes({"fabric_health": 1}, {"fabric_health": 2, "fabric_health_mask": 6})
    assert (change.detail["state"], change.detail["mask"]) == ("fabric", 6)
    assert not changes({"fabric_health": 2}, {"fabric_health": 1})


def test_counters_that_begin_anew_are_told_once_and_are_no_errors() -> None:
    """A reset, or a driver that was loaded again: what fell is named."""
    before = {"energy_joules": 900.0, "ecc_uncorrected_volatile_count": 7, "ecc_corrected_volatile_count": 900}
    after = {"energy_joules": 1.0, "ecc_uncorrected_volatile_count": 0, "ecc_corrected_volatile_count": 0}
    (change,) = changes(before, after)
    assert change.kind is EventKind.DRIVER
    assert change.detail == {
        "state": "counters_reset", "counters": ["energy_joules", "ecc_corrected_volatile_count"],
    }  # fmt: skip
    assert not changes(before, after, after)


def test_corrected_errors_one_by_one_are_what_ecc_is_for() -> None:
    """A burst is another matter."""
    assert CORRECTED_BURST > 10
    assert not changes({"ecc_corrected_volatile_count": 0}, {"ecc_corrected_volatile_count": 3})


def test_every_name_is_a_metric() -> None:
    """A name that nothing fills would never be seen."""
    assert {*GROWING, *FLAGS, *RESETS, "recovery_action", "fabric_health", "fabric_health_mask"} <= METRICS.keys()
