import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import (
    METRICS,
    head_confidence,
    row_entropy,
    row_gini,
    row_hoyer,
    row_participation,
    row_top_mass,
)
from tests.metrics import naive


def gini(row):
    """Mean absolute difference of all pairs, over twice the mean."""
    n = len(row)
    return sum(abs(a - b) for a in row for b in row) / (2 * n * sum(row))


def hoyer(row):
    n = math.sqrt(len(row))
    return (n - sum(map(abs, row)) / math.sqrt(sum(x * x for x in row))) / (n - 1)


SLOW = {
    "row_gini": gini,
    "row_hoyer": hoyer,
    "row_participation": lambda row: 1 / sum(x * x for x in row),
    "row_top_mass": lambda row: sum(sorted(row, reverse=True)[:3]),
    "row_small_share": lambda row: sum(x < 0.1 for x in row) / len(row),
}
OPTIONS = {"row_top_mass": {"k": 3}, "row_small_share": {"threshold": 0.1}}


@pytest.mark.parametrize("name", SLOW)
def test_equals_a_loop_over_rows(soft, name):
    maps = soft(2, 3, 2, 4, 7)
    fast = METRICS[name](maps, **OPTIONS.get(name, {}))
    for i, layer, h in itertools.product(range(2), range(3), range(2)):
        slow = naive.mean(SLOW[name](row) for row in maps[i, layer, h].tolist())
        np.testing.assert_allclose(fast[i, layer, h], slow, rtol=1e-10)


def test_closed_forms_of_uniform_and_one_hot_rows():
    uniform, hot = torch.full((1, 1, 1, 8, 8), 1 / 8).double(), torch.eye(8).double()[None, None, None]
    values = [[METRICS[name](maps).item() for maps in (uniform, hot)] for name in SLOW]
    np.testing.assert_allclose(values, [[0, 7 / 8], [0, 1], [8, 1], [5 / 8, 1], [0, 7 / 8]], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0, 10), k=st.integers(1, 9))
def test_in_range_and_blind_to_the_order_of_keys(seed, spread, k):
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(2, 1, 2, 5, 9))).softmax(-1)
    for metric in map(METRICS.__getitem__, SLOW):
        value, (low, high) = metric(maps), metric.value_range
        assert (value >= low - 1e-12).all() and (value <= (high or 9) + 1e-9).all(), metric.name
        torch.testing.assert_close(value, metric(maps.flip(-1)))
        torch.testing.assert_close(metric(maps.float()).double(), value, atol=2e-5, rtol=1e-4)
    assert (row_top_mass(maps, k=k) >= k / 9 - 1e-12).all()


def test_participation_of_one_row_is_at_most_the_exponential_of_its_entropy(soft):
    rows = soft(1, 1, 50, 1, 9, spread=3.0)
    assert (row_participation(rows) <= row_entropy(rows).exp() + 1e-12).all()


def test_gini_prefers_a_gift_to_the_rich():
    """Moving mass from a smaller to a larger entry raises it, whatever the entries."""
    rows = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.35, 0.15, 0.1]]).double()
    less, more = row_gini(rows[:, None, None, None])
    assert more > less


def test_edge_cases(soft):
    assert row_hoyer(torch.ones(1, 1, 1, 3, 1)).isnan().all()
    assert row_gini(torch.ones(1, 1, 1, 3, 1)).item() == 0
    torch.testing.assert_close(row_top_mass(soft(1, 1, 1, 3, 4), k=9), torch.ones(1, 1, 1).double())
    with pytest.raises(InputError, match="k=0"):
        row_top_mass(soft(1, 1, 1, 3, 4), k=0)
    maps = soft(1, 1, 2, 3, 4).clone()
    maps[0, 0, 1, 2, 2] = math.nan
    for metric in map(METRICS.__getitem__, SLOW):
        assert metric(maps).isnan().tolist() == [[[False, True]]], metric.name


def test_equals_a_loop_and_the_top_one_mass(soft):
    maps = soft(2, 3, 2, 4, 5)
    fast = head_confidence(maps)
    for i, layer, h in itertools.product(range(2), range(3), range(2)):
        np.testing.assert_allclose(fast[i, layer, h], naive.mean(max(row) for row in maps[i, layer, h].tolist()))
    torch.testing.assert_close(fast, row_top_mass(maps, k=1))


def test_uniform_attention_is_least_sure_and_one_hot_most():
    assert head_confidence(torch.full((1, 1, 1, 4, 8), 1 / 8)).item() == 1 / 8
    assert head_confidence(torch.eye(5)[None, None, None]).item() == 1
