"""Classification of features by their nearest neighbours: the accuracy of a model without a head."""

import numpy as np

from attnprobe.core.errors import InputError

NEIGHBOURS = 20
"""Neighbours that vote, as in DINO's evaluation (Caron et al. 2021, arXiv:2104.14294), but unweighted; fewer where a
class has fewer reference images."""


def n_neighbours(labels: np.ndarray) -> int:
    """Number of neighbours that vote among reference images of these labels [image]: at most the smallest class."""
    sizes = np.bincount(labels)
    return int(min(NEIGHBOURS, sizes[sizes > 0].min(), len(labels) - 1))


def neighbour_votes(features: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, int]:
    """Votes [image, class] of each image's k nearest reference images by cosine distance, and k.

    Reference images are judged by the other ones (leave-one-out), so no image votes for itself.

    Args:
        features: [image, feature], finite.
        labels: [image], from 0.
        reference: [image], bool: the images that vote.

    Raises:
        InputError: features that are not finite, or fewer than two reference images.
    """
    from sklearn.neighbors import NearestNeighbors  # takes half a second, and only models without a head need it

    if not np.isfinite(features).all():
        raise InputError("the model's features are not all finite, so they have no neighbours.")
    if reference.sum() < 2:
        raise InputError(f"{int(reference.sum())} labelled images are too few for a nearest neighbour; name more.")
    k = n_neighbours(labels[reference])
    index = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features[reference])
    votes = np.zeros((len(labels), labels.max() + 1))
    for judged, queries in ((reference, None), (~reference, features[~reference])):  # None: all, without themselves
        if judged.any():
            voters = labels[reference][index.kneighbors(queries, return_distance=False)]
            np.add.at(votes, (np.flatnonzero(judged)[:, None], voters), 1)
    return votes, k


def neighbour_answers(features: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correctness [image], bool, and -ln of the label's share of the votes [image], nats.

    One vote is added to each class (Laplace), so that the loss is finite; ours. The rest as for `neighbour_votes`.
    """
    votes, k = neighbour_votes(features, labels, reference)
    share = (votes[np.arange(len(labels)), labels] + 1) / (k + votes.shape[1])
    return votes.argmax(1) == labels, -np.log(share)
