"""Heads at pairwise distances -> groups of heads that do the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from attnprobe.core.measurement import Measurement
from attnprobe.metrics.bootstrap import percentile_interval, resampled_means

REPLICATES = 200
"""Bootstrap resamples of the number of clusters."""


def cluster_summary(m: Measurement, distance: Callable[[np.ndarray], np.ndarray] = lambda mean: mean) -> dict[str, Any]:
    """Groups of heads in each layer, closer than m.settings["cut"]; heads count from 1. Empty if a distance is unknown.

    The number of groups is the number of effective heads; `redundant` counts the other heads. Both are ours.

    Args:
        m: over (layer, head, head).
        distance: what makes distances [..., head, head] of means over images.
    """
    if not np.isfinite(m.mean).all():
        return {}
    cut, heads = m.settings["cut"], m.mean.shape[-1]
    labels = [clusters(layer, cut) for layer in distance(m.mean)]
    effective = [max(of_layer) + 1 for of_layer in labels]
    summary = {
        "effective_heads": effective,
        "effective_heads_ci": [[None, None]] * len(labels),
        "redundant": heads * len(labels) - sum(effective),
        "redundant_ci": [None, None],
        "of": heads * len(labels),
        "clusters": [
            [[head + 1 for head in range(heads) if of_layer[head] == cluster] for cluster in range(max(of_layer) + 1)]
            for of_layer in labels
        ],
        "cut": cut,
        "n_images": m.n_images,
    }
    means = resampled_means(m, at_most=REPLICATES)
    if means is not None and np.isfinite(means).all():
        counts = np.array([[max(clusters(layer, cut)) + 1 for layer in replicate] for replicate in distance(means)])
        summary["effective_heads_ci"] = percentile_interval(counts).T.tolist()
        summary["redundant_ci"] = percentile_interval(heads * len(labels) - counts.sum(-1)).tolist()
    return summary


def clusters(distances: np.ndarray, cut: float) -> list[int]:
    """Cluster number of each head from 0, in order of first appearance, by average linkage.

    Args:
        distances: [head, head], symmetric; below 0, as rounding leaves them, counts as 0.
        cut: clusters at this distance or further apart stay apart.
    """
    heads = len(distances)
    if heads == 1:
        return [0]
    tree = linkage(np.maximum(distances[np.triu_indices(heads, 1)], 0), "average")
    labels = fcluster(tree, np.nextafter(cut, -np.inf), "distance")  # SciPy joins at the distance itself
    order: dict[int, int] = {}
    return [order.setdefault(label, len(order)) for label in labels.tolist()]


def from_cosine(mean: np.ndarray) -> np.ndarray:
    """1 - cosine as a distance."""
    return 1 - mean
