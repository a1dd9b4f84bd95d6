"""Numbers for texts, and the table that finds slots by them."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_bus.text_keys import KeyTable, column_keys


@given(st.lists(st.text(max_size=12), max_size=40), st.integers(0, 5))
def test_two_texts_have_one_number_only_if_they_are_one(texts: list[str], skipped: int) -> None:
    """Wherever they stand in a column, and whatever stands beside them."""
    column = pa.array(["beside"] * skipped + texts, pa.string()).slice(skipped)
    alone = [int(column_keys(pa.array([text], pa.string()))[0]) for text in texts]
    assert column_keys(column).tolist() == alone
    assert len(set(alone)) == len(set(texts))


def test_the_longest_text_of_a_frame_has_a_number_of_its_own() -> None:
    """No two positions share a random number, so that parts that change places are seen."""
    half = "a" * 32_768, "b" * 32_768
    first, second = column_keys(pa.array(["".join(half), "".join(reversed(half))], pa.string()))
    assert first != second


@pytest.mark.parametrize("seed", range(20))
def test_a_table_finds_what_a_dictionary_would(seed: int) -> None:
    """Neighbours, strangers, repetitions, what is new and what was dropped, in any order."""
    chance, table, known = random.Random(seed), KeyTable(), dict[int, int]()
    free = list(range(400, -1, -1))
    for _ in range(60):
        for key in chance.choices(range(1, 500), k=chance.choice([0, 1, 30])):
            if key not in known and free:
                known[key] = free.pop()
                table.put(key, known[key])
        for key in chance.sample(sorted(known), k=min(len(known), chance.choice([0, 0, 5]))):
            free.append(known.pop(key))
            table.drop(free[-1])
        in_order = sorted(known, key=known.__getitem__)
        wanted = [*in_order[chance.randrange(len(in_order) + 1) :], *chance.choices(range(1, 500), k=20), *in_order]
        found = table.find(np.array(wanted, np.uint64)).tolist()
        assert found == [known.get(key, -1) for key in wanted]
        assert (len(table), [table.get(key) for key in wanted]) == (len(known), found)
