import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import head_divergence, measure
from tests.metrics import naive


def one_hot_heads(heads, images=3, layers=2):
    """Head h looks at token h, whatever the query."""
    values = torch.zeros(images, layers, heads, 7, 7)
    for h in range(heads):
        values[:, :, h, :, h] = 1
    return AttentionMaps(values, tuple(map(str, range(images))), TokenGrid(2, 3))


def test_equals_a_double_loop_over_kullback_leibler_divergences(soft):
    maps = soft(2, 2, 3, 4, 5)
    maps[maps < 0.02] = 0  # 0 ln 0 = 0
    fast = head_divergence(maps)
    for i, layer, h, g in itertools.product(range(2), range(2), range(3), range(3)):
        p, q = maps[i, layer, h].tolist(), maps[i, layer, g].tolist()
        slow = naive.mean(naive.jensen_shannon(p[row], q[row]) for row in range(4))
        np.testing.assert_allclose(fast[i, layer, h, g], slow, atol=1e-12)


def test_float32_stays_within_a_microNat_of_float64_even_for_near_equal_heads(soft):
    base = soft(1, 1, 1, 60, 60)
    nudged = (base.log() + 1e-3 * soft(1, 1, 4, 60, 60, seed=1).log()).softmax(-1)
    for maps in (nudged, soft(1, 1, 4, 60, 60)):
        exact, single = head_divergence(maps), head_divergence(maps.float())
        torch.testing.assert_close(single.double(), exact, atol=1e-6, rtol=0)


def test_identical_heads_zero_and_disjoint_heads_ln_two(soft):
    assert head_divergence(soft(2, 3, 1, 5, 5).expand(-1, -1, 4, -1, -1)).abs().max() < 1e-15
    divergence = head_divergence(one_hot_heads(4).values.double())
    torch.testing.assert_close(divergence[0, 0], math.log(2) * (1 - torch.eye(4)).double())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), heads=st.integers(1, 5), spread=st.floats(0, 20))
def test_symmetric_in_range_and_permuted_with_the_heads(seed, heads, spread):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(spread * rng.normal(size=(2, 2, heads, 4, 4))).softmax(-1)
    d = head_divergence(maps)
    torch.testing.assert_close(d, d.mT)
    assert (d >= 0).all() and (d <= math.log(2) + 1e-12).all()
    assert (d.diagonal(dim1=-2, dim2=-1) == 0).all()
    order = torch.from_numpy(rng.permutation(heads))
    torch.testing.assert_close(head_divergence(maps[:, :, order]), d[:, :, order][..., order])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0.1, 20))
def test_close_heads_share_the_mass_that_the_documentation_promises(seed, spread):
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(1, 1, 2, 6, 6))).softmax(-1)
    unshared = (maps[0, 0, 0] - maps[0, 0, 1]).abs().sum(-1).mean() / 2
    assert unshared <= math.sqrt(2 * head_divergence(maps)[0, 0, 0, 1]) + 1e-12


def test_effective_heads_are_all_for_heads_on_different_tokens_and_one_for_equal_heads(soft):
    found = measure([one_hot_heads(5)], [head_divergence])["head_divergence"].summary
    assert found["effective_heads"] == [5, 5] and found["effective_heads_ci"] == [[5, 5], [5, 5]]
    assert found["redundant"] == 0 and found["of"] == 10 and found["redundant_ci"] == [0, 0]
    same = AttentionMaps(soft(3, 2, 1, 7, 7).expand(-1, -1, 5, -1, -1), ("a", "b", "c"), TokenGrid(2, 3))
    found = measure([same], [head_divergence])["head_divergence"].summary
    assert found["effective_heads"] == [1, 1] and found["clusters"] == [[[1, 2, 3, 4, 5]]] * 2
    assert found["redundant"] == 8 and found["redundant_ci"] == [8, 8]


def test_clusters_name_the_heads_that_go_together():
    values = one_hot_heads(4).values[:, :1, [0, 1, 0, 2, 1, 0]]
    maps = AttentionMaps(values, ("a", "b", "c"), TokenGrid(2, 3))
    found = measure([maps], [head_divergence])["head_divergence"].summary
    assert found["clusters"] == [[[1, 3, 6], [2, 5], [4]]]
    assert found["effective_heads"] == [3] and found["redundant"] == 3
    all_together = measure([maps], [head_divergence.with_settings(cut=0.7)])["head_divergence"].summary
    assert all_together["effective_heads"] == [1] and all_together["cut"] == 0.7


def test_one_head_is_one_cluster(soft):
    maps = AttentionMaps(soft(2, 2, 1, 7, 7), ("a", "b"), TokenGrid(2, 3))
    assert measure([maps], [head_divergence])["head_divergence"].summary["effective_heads"] == [1, 1]


def test_the_interval_of_the_clusters_covers_images_that_disagree(soft):
    """Heads equal in half of the images and disjoint in the others: the mean distance lies at the cut of ln(2) / 2."""
    agree, differ = one_hot_heads(2, images=8).values, one_hot_heads(2, images=8).values
    agree[:, :, 1] = agree[:, :, 0]
    maps = AttentionMaps(torch.cat([agree, differ]), tuple(map(str, range(16))), TokenGrid(2, 3))
    m = measure([maps], [head_divergence.with_settings(cut=math.log(2) / 2)])["head_divergence"]
    assert m.summary["effective_heads_ci"] == [[1, 2], [1, 2]] and m.summary["redundant_ci"] == [0, 2]


def test_layers_of_unknown_distances_are_not_clustered(soft):
    values = soft(2, 2, 2, 7, 7).clone()
    values[:, 0, 0] = math.nan
    m = measure([AttentionMaps(values, ("a", "b"), TokenGrid(2, 3))], [head_divergence])["head_divergence"]
    assert m.n_excluded == 2 and np.isfinite(m.mean[1]).all()
    assert m.summary["effective_heads"] == [None, 2] and m.summary["of"] == 2


def test_zero_logits_do_not_warn():
    with np.errstate(all="raise"):
        assert head_divergence(one_hot_heads(3).values).isfinite().all()
    assert pytest.approx(math.log(2)) == head_divergence(one_hot_heads(2).values)[0, 0, 0, 1].item()
