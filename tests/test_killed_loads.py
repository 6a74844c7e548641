"""Loads that are killed at any moment, five on each of two warehouses; the benchmark kills a hundred on each."""

import pytest
from benchmarks.killed_loads import KINDS, kill_many


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_load_leaves_the_old_rows_or_the_new_and_the_next_try_completes_it(kind, tmp_path):
    kills = list(kill_many(kind, tmp_path, 5, seed=0))
    assert {one.kind for one in kills} == {kind}
    assert [one for one in kills if one.seen == "half" or not one.is_completed] == []
