"""How many of a layer's heads do different things?"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.measurement import Measurement, metric
from attnprobe.metrics.bootstrap import percentile_interval, resampled_means
from attnprobe.metrics.row_entropy import floor_at_smallest, sum_x_ln_x

REPLICATES = 200
"""Bootstrap resamples of the number of clusters: one clustering of 12 heads takes 0.4 ms."""


def _summary(m: Measurement) -> dict[str, Any]:
    """Number of clusters of heads in each layer; numbers of heads count from 1. Empty if a distance is unknown."""
    if not np.isfinite(m.mean).all():
        return {}
    cut, heads = m.settings["cut"], m.mean.shape[-1]
    labels = [_cluster(layer, cut) for layer in m.mean]
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
        counts = np.array([[max(_cluster(layer, cut)) + 1 for layer in replicate] for replicate in means])
        summary["effective_heads_ci"] = percentile_interval(counts).T.tolist()
        summary["redundant_ci"] = percentile_interval(heads * len(labels) - counts.sum(-1)).tolist()
    return summary


@metric(
    axes=("layer", "head", "head"),
    value_range=(0.0, math.log(2)),
    unit="nats",
    needs_stochastic=True,
    summarise=_summary,
)
def head_divergence(maps: Tensor, *, cut: float = 0.05) -> Tensor:
    """Jensen-Shannon divergence between the rows of two heads, mean over queries, for every pair of heads of a layer.

        D[l, h, g] = mean over i of  E((p + q) / 2) - (E(p) + E(q)) / 2,      p = A[l, h, i, :], q = A[l, g, i, :]

    with E the entropy in nats: exact, without smoothing, from 0 (equal rows) to ln 2 (no common key).
    Distances between heads by this divergence, then a clustering: Clark et al. 2019, arXiv:1906.04341; they sum over
    queries of smoothed rows, we take the mean, so that the bound stays ln 2 for any number of tokens.

    The summary clusters the heads of each layer by the mean distance over images (average linkage). The number of
    clusters at the distance `cut` is the number of effective heads, ours; `redundant` counts the other heads.

    Args:
        maps: [image, layer, head, query, key], rows that sum to 1.
        cut: clusters at this distance or further apart stay apart; used by the summary only. The total variation of two
            rows is at most sqrt(2 D), so heads closer than 0.05 nats share at least 68 % of their attention mass in
            the mean over queries. 0.05 is 7 % of ln 2; the choice is ours.

    Returns:
        [image, layer, head, head], nats; symmetric, 0 on the diagonal.
    """
    images, layers, heads, n_queries, _ = maps.shape
    own = maps.new_zeros(images, layers, heads, dtype=torch.float64)  # sums of p ln p: D is their small difference
    mixed = maps.new_zeros(images, layers, heads, heads, dtype=torch.float64)
    mixtures, scratch = (torch.empty_like(maps[:, 0, 1:]) for _ in range(2))  # reused: fresh memory costs 15 %
    for layer in range(layers):
        rows = floor_at_smallest(maps[:, layer])
        own[:, layer] = sum_x_ln_x(rows).sum(-1, dtype=torch.float64)
        half = rows / 2
        for h in range(heads - 1):  # one head against all later ones: what the cache holds
            pair = half[:, h, None], half[:, h + 1 :]
            mixed[:, layer, h, h + 1 :] = _of_mixtures(*pair, mixtures[:, h:], scratch[:, h:])
    divergence = (own.unsqueeze(-1) + own.unsqueeze(-2)) / 2 - mixed
    divergence = (divergence / n_queries).triu(1).clamp_min(0)  # below 0 by rounding only; NaN stays NaN
    return (divergence + divergence.mT).to(maps.dtype)


def _of_mixtures(one: Tensor, others: Tensor, mixtures: Tensor, scratch: Tensor) -> Tensor:
    """Sum over queries and keys of m ln m, m = one + others, in float64; the last two are memory to work in."""
    if not one.is_cpu:
        return sum_x_ln_x(torch.add(one, others, out=mixtures)).sum(-1, dtype=torch.float64)
    m = np.add(one.numpy(), others.numpy(), out=mixtures.numpy())
    rows = np.einsum("...k,...k->...", m, np.log2(m, out=scratch.numpy()))
    return torch.from_numpy(rows.sum(-1, dtype=np.float64)) * math.log(2)


def _cluster(distances: np.ndarray, cut: float) -> list[int]:
    """Cluster number of each head, from 0 in order of first appearance."""
    if len(distances) == 1:
        return [0]
    from sklearn.cluster import AgglomerativeClustering  # 1 s of CPU to import, and only summaries need it

    clustering = AgglomerativeClustering(
        n_clusters=None,  # type: ignore[arg-type]  # scikit-learn's annotation forgets None
        metric="precomputed",
        linkage="average",
        distance_threshold=cut,
    )
    order: dict[int, int] = {}
    return [order.setdefault(label, len(order)) for label in clustering.fit_predict(distances).tolist()]
