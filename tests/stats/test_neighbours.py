"""Votes of nearest neighbours are those of a loop over cosine distances."""

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.stats.neighbours import neighbour_answers, neighbour_votes


def by_loop(features, labels, reference, k):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    votes = np.zeros((len(labels), labels.max() + 1))
    for i in range(len(labels)):
        others = [j for j in np.flatnonzero(reference) if j != i]
        for j in sorted(others, key=lambda j: 1 - unit[i] @ unit[j])[:k]:
            votes[i, labels[j]] += 1
    return votes


@pytest.mark.parametrize(("per_class", "k"), [(4, 4), (30, 20)])
def test_no_image_votes_for_itself_and_k_is_that_of_the_smallest_class(per_class, k):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 2 * per_class)
    reference = np.arange(len(labels)) % 2 == 0
    features = random.normal(size=(len(labels), 5)) + np.eye(3, 5)[labels]
    votes, found = neighbour_votes(features, labels, reference)
    assert found == k
    np.testing.assert_array_equal(votes, by_loop(features, labels, reference, k))
    right, loss = neighbour_answers(features, labels, reference)
    np.testing.assert_array_equal(right, votes.argmax(1) == labels)
    for i, label in enumerate(labels):
        assert loss[i] == pytest.approx(-np.log((votes[i, label] + 1) / (k + 3)))


def test_features_that_are_not_finite_and_single_images_are_refused():
    labels, reference = np.array([0, 1, 0]), np.array([True, True, False])
    with pytest.raises(InputError, match="not all finite"):
        neighbour_votes(np.full((3, 2), np.nan), labels, reference)
    with pytest.raises(InputError, match="too few"):
        neighbour_votes(np.ones((3, 2)), labels, np.array([True, False, False]))
