import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import layer_similarity, similar_blocks
from attnprobe.metrics.engine.head_matching import matching
from tests.metrics import naive


def best_by_trying(gains):
    """The largest sum over all permutations."""
    n = len(gains)
    return max(sum(float(gains[h][p[h]]) for h in range(n)) for p in itertools.permutations(range(n)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), heads=st.integers(1, 5))
def test_the_matching_is_the_best_of_all_permutations(seed, heads):
    gains = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, heads, heads)))
    partners = matching(gains)
    assert (partners.sort(-1).values == torch.arange(heads)).all()
    for i, j in itertools.product(range(2), range(3)):
        found = sum(float(gains[i, j, h, partners[i, j, h]]) for h in range(heads))
        np.testing.assert_allclose(found, best_by_trying(gains[i, j]))


@pytest.mark.parametrize("options", [{}, {"axis": "query", "center": "mean", "exclude_prefix": 1}])
def test_layers_are_compared_by_the_best_pairing_of_heads(soft, options):
    maps = soft(2, 3, 3, 4, 4)
    fast = layer_similarity(maps, head_match="hungarian", **options)
    for i, p, r in itertools.product(range(2), range(3), range(3)):
        vectors = [[naive.token_vectors(maps[i, layer, h].tolist(), **options) for h in range(3)] for layer in (p, r)]
        gains = [[naive.mean(map(naive.cosine, a, b)) for b in vectors[1]] for a in vectors[0]]
        np.testing.assert_allclose(fast[i, p, r], best_by_trying(gains) / 3, atol=1e-12)


def test_layers_whose_heads_are_shuffled_are_the_same_layer(soft):
    maps = soft(2, 1, 4, 5, 5)
    shuffled = torch.cat([maps, maps[:, :, [2, 0, 3, 1]]], 1)
    assert (layer_similarity(shuffled)[:, 0, 1] < 0.9).all()
    torch.testing.assert_close(layer_similarity(shuffled, head_match="hungarian"), torch.ones(2, 2, 2).double())
    assert similar_blocks(shuffled)[:, -1, 1].max() < 0.5
    for compare in ("previous", "next", "neighbors", "any"):
        ratio = similar_blocks(shuffled, head_match="hungarian", compare=compare)
        block = 0 if compare == "next" else 1
        assert (ratio[:, :, block] == 1).all(), compare


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_matching_never_lowers_a_similarity_and_ignores_the_order_of_heads(seed):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(size=(2, 3, 4, 5, 5))).softmax(-1)
    matched = layer_similarity(maps, head_match="hungarian")
    assert (matched >= layer_similarity(maps) - 1e-12).all()
    shuffled = maps.clone()
    shuffled[:, 1] = maps[:, 1][:, torch.from_numpy(rng.permutation(4))]
    torch.testing.assert_close(layer_similarity(shuffled, head_match="hungarian"), matched)
    torch.testing.assert_close(
        similar_blocks(shuffled, head_match="hungarian"), similar_blocks(maps, head_match="hungarian")
    )


def test_what_is_not_a_number_stays_visible_and_unknown_choices_are_refused(soft):
    maps = soft(2, 3, 2, 4, 4).clone()
    maps[1, 1, 0, 2, 2] = float("nan")
    matched = layer_similarity(maps, head_match="hungarian")
    assert matched[0].isfinite().all() and matched[1, 0, 1].isnan() and matched[1, 0, 2].isfinite()
    for metric in (layer_similarity, similar_blocks):
        with pytest.raises(InputError, match="Did you mean 'hungarian'"):
            metric(maps, head_match="hungary")
