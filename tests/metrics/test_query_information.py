import itertools
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import query_information

GRID = TokenGrid(2, 3)


def by_loops(matrix, n_prefix=1):
    """NMI by its definition with the joint distribution."""
    rows = [row[n_prefix:] for row in matrix[n_prefix:]]
    rows = [[x / sum(row) for x in row] for row in rows if sum(row) > 0]
    n, keys = len(rows), range(len(rows[0]))
    p_key = [sum(row[k] for row in rows) / n for k in keys]
    information = sum(row[k] / n * math.log(row[k] / p_key[k]) for row in rows for k in keys if row[k] > 0)
    of_key = -sum(p * math.log(p) for p in p_key if p > 0)
    return information / math.sqrt(math.log(n) * of_key) if of_key > 1e-9 else 0.0


def test_equals_loops_over_the_joint_distribution(soft):
    maps = soft(2, 2, 3, 7, 7).clone()
    maps[maps < 0.05] = 0
    maps[0, 0, 0, 3, 1:] = 0  # this query attends to no patch
    fast = query_information(maps, GRID)
    for i, layer, h in itertools.product(range(2), range(2), range(3)):
        np.testing.assert_allclose(fast[i, layer, h], by_loops(maps[i, layer, h].tolist()), atol=1e-10)


def test_equals_the_mutual_information_of_scikit_learn():
    counts = np.random.default_rng(0).multinomial(100, [0.3, 0.3, 0.2, 0.1, 0.05, 0.05], size=6)
    p = counts.sum(0) / 600
    expected = mutual_info_score(None, None, contingency=counts) / math.sqrt(math.log(6) * -(p @ np.log(p)))
    matrix = torch.from_numpy(counts / 100)[None, None, None]
    np.testing.assert_allclose(query_information(matrix, TokenGrid(2, 3, prefix=())), [[[expected]]], rtol=1e-10)


def test_collapse_is_zero_and_a_key_for_each_query_is_one(soft):
    collapsed = soft(1, 1, 2, 1, 7).expand(-1, -1, -1, 7, -1)
    assert query_information(collapsed, GRID).abs().max() < 1e-7
    one_key = torch.zeros(1, 1, 1, 7, 7)
    one_key[..., 2] = 1
    assert query_information(one_key, GRID).item() == 0
    np.testing.assert_allclose(query_information(torch.eye(7)[None, None, None].double(), GRID), 1, atol=1e-12)


def test_a_head_that_looks_at_no_patch_has_no_value():
    only_class = torch.zeros(1, 1, 1, 7, 7)
    only_class[..., 0] = 1
    assert query_information(only_class, GRID).isnan().all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0, 15))
def test_in_range_and_blind_to_the_order_of_keys(seed, spread):
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(2, 1, 2, 7, 7))).softmax(-1)
    nmi = query_information(maps, GRID)
    assert ((nmi >= 0) & (nmi <= 1)).all()
    order = [0, 4, 2, 6, 1, 3, 5]
    torch.testing.assert_close(nmi, query_information(maps[..., order], GRID))
    torch.testing.assert_close(query_information(maps.float(), GRID).double(), nmi, atol=2e-5, rtol=1e-4)
