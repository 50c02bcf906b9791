import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import effective_rank
from tests.metrics import naive

BOTH = pytest.mark.parametrize("order", [1, 2])


@BOTH
def test_equals_the_formula_on_singular_values(soft, signed, order):
    for maps in (soft(2, 2, 2, 5, 5), signed(2, 2, 2, 3, 6), signed(2, 2, 2, 6, 3)):
        fast = effective_rank(maps, order=order)
        for i, layer, h in itertools.product(range(2), range(2), range(2)):
            s = np.linalg.svd(maps[i, layer, h].numpy(), compute_uv=False).tolist()
            if order == 1:
                slow = math.exp(naive.entropy([x / sum(s) for x in s]))
            else:
                slow = sum(x**2 for x in s) ** 2 / sum(x**4 for x in s)
            np.testing.assert_allclose(fast[i, layer, h], slow, rtol=1e-10)


@BOTH
def test_one_for_equal_rows_and_t_for_a_permutation(soft, order):
    rank = effective_rank(soft(1, 2, 2, 1, 6).expand(-1, -1, -1, 6, -1), order=order)
    torch.testing.assert_close(rank, torch.ones(1, 2, 2).double())
    permutation = torch.eye(9)[torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    assert effective_rank(permutation[None, None, None], order=order).item() == pytest.approx(9, rel=1e-6)


@BOTH
def test_groups_of_tokens_that_look_at_themselves_are_counted(order):
    blocks = torch.block_diag(*[torch.full((4, 4), 1 / 4)] * 3)
    assert effective_rank(blocks[None, None, None], order=order).item() == pytest.approx(3, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0.1, 20))
def test_order_two_is_never_above_order_one_and_both_lie_in_range(seed, spread):
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(1, 2, 2, 6, 6))).softmax(-1)
    one, two = effective_rank(maps, order=1), effective_rank(maps, order=2)
    assert (two >= 1 - 1e-9).all() and (two <= one + 1e-9).all() and (one <= 6 + 1e-9).all()


@BOTH
def test_a_value_that_is_not_finite_gives_nan_in_its_map_only(soft, order):
    maps = soft(2, 2, 2, 4, 4).clone()
    maps[1, 0, 1, 2, 2] = math.nan
    rank = effective_rank(maps, order=order)
    assert rank.isnan().nonzero().tolist() == [[1, 0, 1]]


def test_other_orders_are_refused(soft):
    with pytest.raises(InputError, match=r"order=3 is not a choice\. Known: 1, 2"):
        effective_rank(soft(1, 1, 1, 3, 3), order=3)
