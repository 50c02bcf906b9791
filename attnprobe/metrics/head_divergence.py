"""Jensen-Shannon divergence between the heads of a layer, and the number of heads that differ."""

import math

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.heads import cluster_summary
from attnprobe.metrics.row_entropy import floor_at_smallest, sum_of_products, sum_x_ln_x


@metric(
    axes=("layer", "head", "head"),
    value_range=(0.0, math.log(2)),
    unit="nats",
    needs_stochastic=True,
    by_row=True,
    summarise=cluster_summary,
)
def head_divergence(maps: Tensor, *, cut: float = 0.05) -> Tensor:
    """Jensen-Shannon divergence between the rows of two heads, mean over queries, for every pair of heads of a layer.

        D[l, h, g] = mean over i of  E((p + q) / 2) - (E(p) + E(q)) / 2,      p = A[l, h, i, :], q = A[l, g, i, :]

    with E the entropy in nats: exact, without smoothing, from 0 (equal rows) to ln 2 (no common key).
    Distances between heads by this divergence, then a clustering: Clark et al. 2019, arXiv:1906.04341; they sum over
    queries of smoothed rows, we take the mean, so that the bound stays ln 2 for any number of tokens.

    The summary clusters the heads of each layer by the mean distance over images (average linkage). The number of
    clusters at the distance `cut` is the number of effective heads, ours; `redundant` counts the other heads.
    Symmetric, 0 on the diagonal.

    Caveats: near-uniform heads are close whatever they prefer and count as redundant, in an untrained network, too:
    unrelated rows of log-normal entries of small log-std s are about s^2/4 nats apart, 0.0025 at s = 0.1. The mean
    hides a few queries, such as the class token's, on which heads share nothing: one of 197 adds 0.0035.

    Args:
        cut: clusters at this distance or further apart stay apart; used by the summary only. The total variation of two
            rows is at most sqrt(2 D), so heads closer than 0.05 nats share at least 68 % of their attention mass in
            the mean over queries. 0.05 is 7 % of ln 2; the choice is ours.
    """
    images, layers, heads, n_queries, _ = maps.shape
    own = maps.new_zeros(images, layers, heads, dtype=torch.float64)  # sums of p ln p: D is their small difference
    mixed = maps.new_zeros(images, layers, heads, heads, dtype=torch.float64)
    mixtures, scratch = (torch.empty_like(maps[:, 0, 1:].flatten(-2)) for _ in range(2))  # fresh memory costs 15 %
    for layer in range(layers):
        rows = floor_at_smallest(maps[:, layer]).flatten(-2)
        own[:, layer] = sum_x_ln_x(rows)
        half = rows / 2
        for h in range(heads - 1):  # one head against all later ones: what the cache holds
            pair = half[:, h, None], half[:, h + 1 :]
            mixed[:, layer, h, h + 1 :] = _of_mixtures(*pair, mixtures[:, h:], scratch[:, h:])
    divergence = (own.unsqueeze(-1) + own.unsqueeze(-2)) / 2 - mixed
    divergence = (divergence / n_queries).triu(1).clamp_min(0)  # below 0 by rounding only; NaN stays NaN
    return (divergence + divergence.mT).to(maps.dtype)


def _of_mixtures(one: Tensor, others: Tensor, mixtures: Tensor, scratch: Tensor) -> Tensor:
    """Sum over the last axis of m ln m, m = one + others, in float64; the last two are memory to work in."""
    if not one.is_cpu:
        return sum_x_ln_x(torch.add(one, others, out=mixtures))
    m = np.add(one.numpy(), others.numpy(), out=mixtures.numpy())
    return torch.from_numpy(sum_of_products(m, np.log2(m, out=scratch.numpy()))) * math.log(2)
