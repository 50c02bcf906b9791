import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from attnprobe.metrics import head_similarity, measure
from attnprobe.metrics.engine.head_clusters import clusters, fewest_and_most
from tests.metrics.test_head_divergence import one_hot_heads


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
