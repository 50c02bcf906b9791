import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.metrics import row_entropy, row_entropy_relative
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
