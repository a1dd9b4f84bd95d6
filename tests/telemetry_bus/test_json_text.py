"""JSON in which absent, zero and NaN are three things."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus.json_text import dumps, number


@given(st.floats())
def test_every_float_comes_back_as_itself(value: float) -> None:
    """Through text and `number`, to the last bit; NaN is NaN."""
    again = number(json.loads(dumps(value)))
    assert again is not None
    assert (math.isnan(again) and math.isnan(value)) or (again, math.copysign(1, again)) == (
        value,
        math.copysign(1, value),
    )


def test_non_finite_numbers_are_their_strings_wherever_they_stand() -> None:
    """In lists, tuples and objects, and the text is strict JSON."""
    text = dumps({"a": [math.nan, (math.inf,)], "b": {"c": -math.inf}, "d": None, "e": 0.0})
    assert text == '{"a":["NaN",["Infinity"]],"b":{"c":"-Infinity"},"d":null,"e":0.0}'


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (0, 0.0), (-3, -3.0), (1.5, 1.5), ("-Infinity", -math.inf)]
)
def test_a_number_is_read_from_what_json_has_for_it(value: Any, expected: float | None) -> None:
    """Null is absent; the three strings are numbers."""
    assert number(value) == expected


@pytest.mark.parametrize("value", [True, False, "", "nan", "1.0", [], {}, 10**400], ids=repr)
def test_what_is_no_number_is_refused(value: Any) -> None:
    """A boolean, another text and an integer beyond any float: a ValueError that says what was expected."""
    with pytest.raises(ValueError, match="expected a number"):
        number(value)
