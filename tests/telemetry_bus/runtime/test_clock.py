"""Clocks: the wall clock may step, durations never do."""

from __future__ import annotations

import pytest

from telemetry_bus.runtime.clock import ManualClock, SystemClock


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    """Time that passes moves both clocks alike."""
    clock = ManualClock(100.0)
    assert (clock.now(), clock.monotonic()) == (100.0, 0.0)
    clock.advance(1.5)
    assert (clock.now(), clock.monotonic()) == (101.5, 1.5)


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0], ids=["back", "forwards"])
def test_setting_the_wall_clock_is_no_duration(seconds: float) -> None:
    """As an administrator or NTP does it."""
    clock = ManualClock(100.0)
    clock.step(seconds)
    assert (clock.now(), clock.monotonic()) == (100.0 + seconds, 0.0)


def test_time_does_not_pass_backwards() -> None:
    """The message says what to do instead."""
    with pytest.raises(ValueError, match=r"step\(\)"):
        ManualClock().advance(-1.0)


def test_the_machine_clock_does_not_go_back_between_two_looks() -> None:
    """Monotonic is for durations."""
    clock = SystemClock()
    looks = [clock.monotonic() for _ in range(1000)]
    assert looks == sorted(looks)
