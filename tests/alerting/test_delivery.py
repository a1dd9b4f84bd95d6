"""When a delivery is tried again, and under which id."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerting.delivery import Backoff, delivery_id

BACKOFF = Backoff()


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_a_wait_is_doubled_up_to_its_bound_and_never_zero(attempts: int, seed: int) -> None:
    """Between half and all of the doubled wait, at most a minute."""
    full = min(BACKOFF.max_seconds, BACKOFF.first_seconds * 2.0 ** min(attempts - 1, 32))
    wait = BACKOFF.wait_seconds(attempts, None, random.Random(seed))
    assert full / 2 <= wait <= full


@pytest.mark.parametrize(
    ("asked", "at_least", "at_most"),
    [
        pytest.param(0.0, 0.125, 0.25, id="less than the backoff"),
        pytest.param(120.0, 120.0, 120.0, id="more than the backoff"),
        pytest.param(1e9, 3600.0, 3600.0, id="more than is bearable"),
    ],
)
def test_what_a_receiver_asks_for_is_obeyed_within_reason(asked: float, at_least: float, at_most: float) -> None:
    """Retry-After makes a wait longer, never shorter, and never longer than an hour."""
    assert at_least <= BACKOFF.wait_seconds(1, asked, random.Random(1)) <= at_most


def test_an_id_is_made_of_all_that_it_stands_for() -> None:
    """Another key, transition or receiver is another id; the same is the same in every process and for ever."""
    ids = {
        delivery_id(key, transition, receiver)
        for key in ("job/a/nonfinite/1", "job/a/nonfinite/2")
        for transition in ("firing", "updated:1", "resolved")
        for receiver in ("ops", "desk")
    }
    assert len(ids) == 12
    assert delivery_id("job/a/nonfinite/1", "firing", "ops") == "7679eff3-6abc-5a60-811c-d43fc9775eb4"
