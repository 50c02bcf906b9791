"""Heads of two layers matched with each other, and heads of one layer grouped by their distances."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.special import ndtri
from torch import Tensor

from attnprobe.core.measurement import Measurement

HEAD_MATCH = ("index", "hungarian")


def matching(gains: Tensor) -> Tensor:
    """[..., head], the index of each head's partner, so that the sum of gains over pairs is largest (Hungarian method).

    A permutation; heads keep their order where a gain is not finite. `gains` are [..., head, head of the other layer],
    such as summed cosines.
    """
    flat = gains.detach().double().cpu().flatten(0, -3)
    own = torch.arange(gains.shape[-1])
    found = [
        torch.from_numpy(linear_sum_assignment(one.numpy(), maximize=True)[1]) if one.isfinite().all() else own
        for one in flat
    ]
    return torch.stack(found).view(gains.shape[:-1]).to(gains.device)


def cluster_summary(m: Measurement, distance: Callable[[np.ndarray], np.ndarray] = lambda mean: mean) -> dict[str, Any]:
    """Groups of heads in each layer, closer than m.settings["cut"]; heads count from 1.

    The number of groups is the number of effective heads; `redundant` counts the other heads. Both are ours, and so are
    their intervals, see `fewest_and_most`. A layer of which a distance is unknown has no groups, None effective heads
    and does not count; empty if there is no other.

    Args:
        m: over (layer, head, head).
        distance: what makes distances [..., head, head] of means over images.
    """
    cut, heads = m.settings["cut"], m.mean.shape[-1]
    distances, ends = distance(m.mean), distance(m.ci).swapaxes(0, 1)
    labels = [clusters(layer, cut) if np.isfinite(layer).all() else [] for layer in distances]
    effective = [max(of_layer) + 1 if of_layer else None for of_layer in labels]
    ranges = [
        [None, None] if n is None else fewest_and_most(n, mean, bounds, cut)
        for n, mean, bounds in zip(effective, distances, ends, strict=True)
    ]
    counted = [(n, *range_) for n, range_ in zip(effective, ranges, strict=True) if n is not None]
    if not counted:
        return {}
    groups, fewest, most = zip(*counted, strict=True)
    of = heads * len(groups)
    return {
        "effective_heads": effective,
        "effective_heads_ci": ranges,
        "redundant": of - sum(groups),
        "redundant_ci": [None, None] if None in fewest else [of - sum(most), of - sum(fewest)],
        "of": of,
        "clusters": [
            [[head + 1 for head in range(heads) if of_layer[head] == cluster] for cluster in range(n or 0)]
            for n, of_layer in zip(effective, labels, strict=True)
        ],
        "cut": cut,
        "n_images": m.n_images,
    }


def fewest_and_most(count: int, mean: np.ndarray, ends: np.ndarray, cut: float) -> list[int | None]:
    """Fewest and most groups: with all distances at one end of their intervals, and at the other; `count` is between.

    The intervals are widened so that all hold at once with 95 % (Bonferroni, as of normal means). Resampled numbers of
    groups would be too sure: of heads whose distances are near the cut they miss the true number most of the time.
    None where there are no intervals.

    Args:
        mean: [head, head], distances.
        ends: [2, head, head], of their 95 % intervals.
    """
    if not np.isfinite(ends).all():
        return [None, None]
    pairs = max(1, len(mean) * (len(mean) - 1) // 2)
    wide = mean + (ends - mean) * ndtri(1 - 0.025 / pairs) / ndtri(0.975)
    found = [max(clusters(end, cut)) + 1 for end in wide]
    return [min(count, *found), max(count, *found)]


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
