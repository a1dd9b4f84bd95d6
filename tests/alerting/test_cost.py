"""What trouble costs: not known is not free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alerting import BadSetting, Presentation
from alerting.cost import Cost, cost_of
from alerting.incident import Incident, Scope, Tier, opened
from tests.alerting.scenes import T0, finding


def incident(**changes: Any) -> Incident:
    """The incident of a finding with ``changes``."""
    item = finding(**({"onset_time": T0} | changes))
    return opened(item, Scope.of(item), 1, Tier.PAGE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"world_size": 300_000}, Cost(600_000.0, 300_000.0), id="all GPUs of the job"),
        pytest.param({"world_size": None, "ranks_affected": 8}, Cost(16.0, 8.0), id="those that are known"),
        pytest.param({"world_size": None, "ranks_affected": None}, Cost(None, None), id="no number of GPUs"),
        pytest.param({"world_size": 0}, Cost(0.0, 0.0), id="zero is a number"),
        pytest.param({"world_size": 512, "onset_time": None}, Cost(1024.0, None), id="no onset"),
    ],
)
def test_the_cost_of_half_an_hour(changes: dict[str, object], expected: Cost) -> None:
    """Absent and zero give different answers."""
    assert cost_of(incident(**changes), 2.0, T0 + 1800) == expected


def test_what_is_over_costs_nothing_more() -> None:
    """The cost ends with the incident, and a clock that stands before the onset makes none negative."""
    over = replace(incident(), resolved_time=T0 + 1800)
    assert cost_of(over, 2.0, T0 + 1e6) == cost_of(incident(), 2.0, T0 + 1800)
    assert cost_of(incident(), 2.0, T0 - 60).usd_so_far == 0.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"usd_per_gpu_hour": -1.0}, "usd_per_gpu_hour"),
        ({"usd_per_gpu_hour": float("nan")}, "usd_per_gpu_hour"),
        ({"base_url": "watch.example"}, r"^serve\.public_url: "),
        ({"runbook_base_url": "javascript:alert(1)"}, r"^alert\.runbooks: "),
    ],
)
def test_a_presentation_that_cannot_be_is_refused(changes: dict[str, object], key: str) -> None:
    """A price is a price, and a link is a link; the message names the key of the configuration."""
    with pytest.raises(BadSetting, match=key):
        Presentation(**changes)  # type: ignore[arg-type]
