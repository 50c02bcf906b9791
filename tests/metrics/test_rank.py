import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import (
    approximate_rank,
    effective_rank,
    lazy_rate,
    nuclear_ratio,
    numerical_rank,
    spectral_gap,
    stable_rank,
    token_rank,
)
from tests.metrics import naive

FAMILY = (numerical_rank, stable_rank, nuclear_ratio, spectral_gap)


def from_eigenvalues(matrix):
    """Singular values by another road: eigenvalues of A A^T, by NumPy."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0))


def test_equal_the_definitions_with_eigenvalues_of_the_gram_matrix(soft):
    maps = soft(2, 2, 3, 6, 6)
    fast = [metric(maps, **({"threshold": 0.05} if metric is numerical_rank else {})) for metric in FAMILY]
    for at in np.ndindex(2, 2, 3):
        s = from_eigenvalues(maps[at].numpy())
        slow = [(s > 0.05 * s[0]).sum(), (s**2).sum() / s[0] ** 2, s.sum() / s[0], 1 - s[1] / s[0]]
        np.testing.assert_allclose([value[at] for value in fast], slow, rtol=1e-7)


def test_closed_forms_of_one_pattern_and_of_a_permutation():
    one, many = torch.full((1, 1, 1, 6, 6), 1 / 6).double(), torch.eye(6).double()[None, None, None]
    values = [[metric(maps).item() for maps in (one, many)] for metric in FAMILY]
    np.testing.assert_allclose(values, [[1, 6], [1, 6], [1, 6], [1, 0]], atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 5))
def test_the_rank_of_a_product_is_found_and_the_family_is_ordered(seed, rank):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(size=(1, 1, 1, 5, rank)) @ rng.normal(size=(1, 1, 1, rank, 5)))
    numerical, stable, nuclear = (f(maps).item() for f in (numerical_rank.with_settings(threshold=1e-9), *FAMILY[1:3]))
    assert numerical == rank
    assert 1 - 1e-9 <= stable <= nuclear + 1e-9 <= rank + 2e-9
    assert effective_rank(maps).item() <= rank + 1e-9
    turned = torch.from_numpy(np.linalg.qr(rng.normal(size=(5, 5)))[0]) @ maps
    for metric in FAMILY[1:]:
        torch.testing.assert_close(metric(turned), metric(maps))


def test_what_cannot_be_said_is_nan(soft):
    maps = soft(1, 1, 3, 4, 4).clone()
    maps[0, 0, 1] = 0
    maps[0, 0, 2, 1, 1] = math.inf
    for metric in FAMILY:
        value = metric(maps)[0, 0]
        assert value[0].isfinite() and value[2].isnan(), metric.name
        assert value[1].item() == 0 if metric is numerical_rank else value[1].isnan(), metric.name
    with pytest.raises(InputError, match="threshold=1 must lie in"):
        numerical_rank(maps, threshold=1)


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


def test_it_counts_directions_of_equal_weight():
    """Unit tokens that come in pairs of opposite sign, r pairs along r axes: rank r."""
    for r in (1, 2, 5):
        axes = torch.eye(8)[:r]
        assert token_rank(torch.cat([axes, -axes])[None, None]).item() == pytest.approx(r, abs=1e-5)


def test_a_long_token_counts_like_any_other():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 40, 16)))
    stretched = x.clone()
    stretched[0, 0, 3] *= 1000
    torch.testing.assert_close(token_rank(stretched), token_rank(x))


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_it_is_the_participation_ratio_of_squared_singular_values(shape):
    x = np.random.default_rng(1).normal(size=shape)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2
    assert token_rank(torch.from_numpy(x)[None, None]).item() == pytest.approx(s.sum() ** 2 / (s**2).sum(), abs=1e-10)


def test_equal_tokens_have_no_directions():
    equal = torch.full((1, 1, 6, 4), 0.3)
    assert token_rank(equal).item() == 0 and token_rank(equal[..., :1, :]).isnan()
    equal[0, 0, 2, 1] = torch.nan
    assert token_rank(equal).isnan()


def test_the_approximate_rank_is_that_of_the_best_approximation_that_leaves_a_tenth_of_the_square(soft):
    maps = soft(2, 2, 3, 6, 6)
    for at in np.ndindex(2, 2, 3):
        matrix = maps[at].numpy()
        u, s, vt = np.linalg.svd(matrix)
        left = [np.square(matrix - u[:, :k] * s[:k] @ vt[:k]).sum() / np.square(matrix).sum() for k in range(7)]
        for share in (0.5, 0.9, 0.99, 0.9999):
            assert approximate_rank(maps, share=share)[at] == next(k for k in range(7) if left[k] <= 1 - share)


def test_lazy_are_heads_of_equal_rows_or_of_one_column_and_no_others():
    uniform, column, itself = torch.full((6, 6), 1 / 6), torch.zeros(6, 6), torch.eye(6)
    column[:, 2] = 1
    maps = torch.stack([torch.stack([uniform, column]), torch.stack([column, itself])])[None]
    assert approximate_rank(maps).tolist() == [[[1, 1], [1, 6]]]  # 0.9 of six equal squares: six
    assert lazy_rate(maps).tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize("share", [0, 1, 2.0])
def test_a_share_out_of_range_is_refused(share, soft):
    with pytest.raises(InputError, match="must lie in"):
        lazy_rate(soft(1, 1, 1, 3, 3), share=share)
