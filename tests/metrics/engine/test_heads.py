import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from attnprobe.core.errors import InputError
from attnprobe.metrics import head_similarity, layer_similarity, measure, similar_blocks
from attnprobe.metrics.engine.heads import clusters, fewest_and_most, matching
from tests.metrics import naive
from tests.metrics.test_head_divergence import one_hot_heads


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


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), heads=st.integers(2, 9), cut=st.floats(0.01, 1))
def test_equal_the_clusters_of_scikit_learn(seed, heads, cut):
    distances = np.random.default_rng(seed).uniform(size=(heads, heads))
    distances = np.triu(distances, 1) + np.triu(distances, 1).T
    theirs = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=cut)
    labels = theirs.fit_predict(distances)
    assert (np.equal.outer(labels, labels) == np.equal.outer(*[clusters(distances, cut)] * 2)).all()


def test_the_distance_of_the_cut_itself_keeps_heads_apart():
    distances = np.array([[0, 0.5], [0.5, 0]])
    assert clusters(distances, 0.5) == [0, 1] and clusters(distances, 0.500001) == [0, 0]
    assert clusters(np.zeros((1, 1)), 0.1) == [0] and clusters(np.full((3, 3), -1e-9), 0.1) == [0, 0, 0]


def test_cosines_are_clustered_as_distances_from_one(soft):
    maps = one_hot_heads(3)
    maps.values[:, :, 2] = maps.values[:, :, 0]
    summary = measure([maps], [head_similarity])["head_similarity"].summary
    assert summary["clusters"] == [[[1, 3], [2]]] * 2 and summary["effective_heads_ci"] == [[2, 2]] * 2
    assert summary["redundant"] == 2 and summary["cut"] == 0.1


@pytest.mark.parametrize("distance", [0.045, 0.052, 0.2])
def test_the_range_of_the_number_of_groups_covers_the_true_one(distance):
    """Eight heads at one distance of each other, measured on 32 images that scatter; 200 repetitions."""
    rng = np.random.default_rng(0)
    truth = 8 if distance >= 0.05 else 1
    covered = []
    for _ in range(200):
        noise = 0.02 * rng.normal(size=(32, 8, 8))
        d = (distance + noise + noise.swapaxes(1, 2)) * (1 - np.eye(8))
        half = 2.04 * d.std(0, ddof=1) / np.sqrt(32)
        count = max(clusters(d.mean(0), 0.05)) + 1
        low, high = fewest_and_most(count, d.mean(0), np.stack([d.mean(0) - half, d.mean(0) + half]), 0.05)
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.92
    assert fewest_and_most(3, np.zeros((3, 3)), np.full((2, 3, 3), np.nan), 0.05) == [None, None]


def test_a_layer_of_which_a_distance_is_unknown_does_not_count_and_the_others_are_clustered():
    maps = one_hot_heads(4, layers=3)
    maps.values[:, :, 1] = maps.values[:, :, 0]
    maps.values[:, 1, 3] = float("nan")
    found = measure([maps], ["head_divergence"], bootstrap=20)["head_divergence"].summary
    assert found["effective_heads"] == [3, None, 3] and found["clusters"][1] == []
    assert (found["redundant"], found["redundant_ci"], found["of"]) == (2, [2, 2], 8)
    maps.values[:] = float("nan")
    assert measure([maps], ["head_divergence"], bootstrap=20)["head_divergence"].summary == {}
