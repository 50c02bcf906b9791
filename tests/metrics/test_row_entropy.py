import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import query_information, row_entropy, row_entropy_relative
from tests.metrics import naive


def test_equals_a_loop_over_rows(soft):
    maps = soft(2, 3, 2, 4, 6)
    maps[maps < 0.05] = 0
    fast = row_entropy(maps)
    for i, layer, h in itertools.product(range(2), range(3), range(2)):
        slow = naive.mean(naive.entropy(row) for row in maps[i, layer, h].tolist())
        np.testing.assert_allclose(fast[i, layer, h], slow, atol=1e-12)


def test_one_hot_rows_zero_and_uniform_rows_ln_k():
    torch.testing.assert_close(row_entropy(torch.eye(5)[None, None, None]), torch.zeros(1, 1, 1))
    torch.testing.assert_close(row_entropy(torch.full((1, 2, 3, 4, 9), 1 / 9)), torch.full((1, 2, 3), math.log(9)))


def test_the_number_is_the_same_in_every_precision_and_with_gradients(soft):
    maps = soft(1, 2, 2, 30, 30)
    exact = row_entropy(maps)
    torch.testing.assert_close(row_entropy(maps.float()).double(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(row_entropy(maps.bfloat16()).double(), exact, atol=0.05, rtol=0)
    with_graph = maps.clone().requires_grad_()
    torch.testing.assert_close(row_entropy(with_graph).detach(), exact)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0, 50), keys=st.integers(1, 8))
def test_between_zero_and_ln_k_and_blind_to_the_order_of_keys(seed, spread, keys):
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(2, 2, 2, 3, keys))).softmax(-1)
    e = row_entropy(maps)
    assert (e >= -1e-12).all() and (e <= math.log(keys) + 1e-12).all()
    torch.testing.assert_close(e, row_entropy(maps.flip(-1)))


def test_relative_to_uniform_attention_only_its_ends_do_not_depend_on_the_number_of_tokens(soft):
    for n in (4, 9):
        maps = soft(2, 3, 2, n, n)
        heads = maps.flatten(0, 2).tolist()
        expected = [naive.mean(naive.entropy(row) / math.log(n) for row in head) for head in heads]
        np.testing.assert_allclose(row_entropy_relative(maps).flatten(), expected)
        assert row_entropy_relative(torch.full((1, 1, 1, n, n), 1 / n)).item() == pytest.approx(1)
    assert row_entropy_relative(torch.ones(1, 1, 1, 3, 1)).item() == 0
    tenth = [row_entropy_relative(torch.eye(10).repeat_interleave(k, 1)[None, None, None] / k).item() for k in (2, 8)]
    assert tenth[0] < tenth[1] - 0.1  # uniform over a tenth of 20 keys, and of 80


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
